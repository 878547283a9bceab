"""The embedded sample world: entities, drawings, scenes, captions and two small models, all made by these scripts."""
