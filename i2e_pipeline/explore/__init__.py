"""`i2e explore`: a published dataset in a browser. Reads the dataset, and of the run beside it what its tables know."""
