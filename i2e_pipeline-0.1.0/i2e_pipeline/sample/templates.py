"""What alt-text looks like: templates of captions, `{s}` and `{o}` for names, `{n}`, `{k}`, `{d}` for numbers.

Written for this sample in the manner of web alt-text; none is taken from a corpus.
"""

NEUTRAL = (
    "{s}", "{s}", "{s}", "{s} - stock photo", "{s} | Free Download", "{s} clipart", "Illustration of {s}",
    "{s} vector image", "{s} royalty free stock images", "{s}, isolated on white background",
    "{s} sticker, waterproof, 3 inch", "{s} poster A3", "{s} wallpaper 1920x1080", "Cartoon {s}",
    "{s} coloring page for kids", "How to draw {s} step by step", "{s} T-Shirt Design PNG", "{s} coffee mug 11oz",
    "{s} enamel pin", "Learn to spell {s}", "{s} quiz", "{s} jigsaw puzzle 500 pieces", "The best of {s}",
    "{s} (photo: staff)", "{s} icon set", "A picture of {s} on a plain background", "Photo of {s}", "my {s} :)",
    "{s} close up", "Everything you need to know about {s}", "Facts about {s} for children",
    "{s} / handmade / limited edition", "{s} fridge magnets, set of 4", "{s} embroidered patch",
    "{s} (2014 series) print", "New: {s}!", "{s} phone case", "Thumbnail for {s}", "{s} worksheet",
    "Picture of the day: {s}", "{s} gift idea - Free shipping", "Wholesale {s} from china suppliers, MOQ 500 pcs",
    "{s} by Anna K. on 500px", "{s} greeting card", "Vintage {s} postcard 1962", "Buy {s} online", "{s} $12.99",
    "{s} 32pcs/lot", "{s} ~ cross stitch pattern", "Love this {s} #{n}", "{s} embroidery design",
    "Metal wall art: {s}", "{s}: a short history", "Why we love {s}", "Pin on {s}",
)  # fmt: skip
"""Say nothing about what kind of thing is meant."""
CONTEXT = {
    "LOC": (
        "{s} flag", "Flag of {s}", "{s} national flag 3x5 ft polyester", "National flag of {s} waving",
        "Flag of {s} button", "{s} flag emoji meaning", "Visit {s}: 10 places to see", "{s} travel guide",
        "Made in {s}", "Map, anthem and flag of {s}", "{s} vs rest of the world, group stage", "Greetings from {s}",
        "Flights to {s}", "Embassy of {s}", "{s} fan scarf",
    ),
    "ANIMAL": (
        "Wild {s} in the zoo", "Baby {s} cartoon", "{s} in its natural habitat", "The {s} and other animals",
        "Cute {s} nursery print", "{s} plush toy", "Animals A-Z: {s}", "{s} tattoo ideas",
        "Spotted a {s} this morning", "Farm and forest: the {s}",
    ),
    "FOOD": (
        "Fresh {s}", "{s} recipe", "Organic {s} 500g", "{s} nutrition facts, calories", "Healthy snack: {s}",
        "{s} salad recipe ideas", "Roast {s} with herbs", "{s} at the farmers market", "Is {s} good for you?",
        "Grilled {s} | What's for dinner?",
    ),
    "PLANT": ("{s} seeds, pack of 50", "{s} in bloom", "How to grow {s}", "Bouquet with {s}", "{s} flower drawing"),
    "SPORT": (
        "{s} equipment", "{s} club logo", "{s} world cup 2018", "Learn the rules of {s}", "{s} team training",
        "Youth {s} league",
    ),
    "SPACE": (
        "The planet and the sky: {s}", "{s} as seen by a space probe", "Solar system: {s}", "{s} NASA image",
        "{s} at night sky",
    ),
    "THING": (
        "{s} for sale", "Antique {s}", "Toy {s}", "{s} with warranty", "Used {s}, good condition", "{s} silhouette",
        "Old {s} in the garage", "{s} 3D model", "DIY {s} project", "{s} close-up, macro",
    ),
}  # fmt: skip
"""Fit a kind of entity."""
SENSE = {
    "Q43": ("{s} Istanbul holiday", "Ankara, {s}"),
    "Q848706": ("Thanksgiving {s}", "{s} bird"),
    "Q230": ("Tbilisi, {s}",),
    "Q1428": ("Atlanta, {s}", "{s} state flag"),
    "Q7987": ("Wireless {s} USB",),
    "Q2751034": ("Field {s} eating cheese",),
    "Q308": ("The planet {s}", "{s}, closest planet to the Sun"),
    "Q1921606": ("Mechanical gaming {s} RGB",),
    "Q901207": ("{s} lessons for beginners, MIDI",),
    "Q28425": ("{s} flying at night, cave",),
    "Q809910": ("Wooden {s} 32 inch, youth league",),
    "Q13194": ("{s} smoothie",),
    "Q43642": ("{s} bird, New Zealand",),
    "Q864693": ("Crispy {s} drumsticks",),
    "Q780": ("{s} on the farm laying eggs",),
    "Q41466": ("{s} puck NHL",),
    "Q1455": ("{s} on turf, Olympic games",),
    "Q1072": ("Anatomy of the {s}", "{s} surgery"),
    "Q3419242": ("Ace of {s}", "{s} playing cards suit"),
    "Q298": ("Santiago, {s}",),
    "Q165199": ("Red hot {s} sauce",),
    "Q41323": ("{s} NFL Super Bowl",),
    "Q2736": ("{s} FIFA goal",),
    "Q1223": ("Seattle, {s}",),
    "Q61": ("{s} capitol building",),
    "Q884": ("Seoul, {s}",),
    "Q423": ("Pyongyang, {s}",),
    "Q974": ("Kinshasa, {s}",),
    "Q971": ("Brazzaville, {s}",),
    "Q5283": ("{s} ring 2 carat",),
    "Q139": ("Chess {s} checkmate",),
}  # fmt: skip
"""Tell homonyms apart, by entity: seldom used, so that mostly the picture must decide."""
FOREIGN = {
    "de": (
        "{s} kaufen - kostenloser Versand", "{s} Aufkleber", "Bild: {s}", "{s} Ausmalbild",
        "{s} günstig online bestellen", "Poster {s} 50x70",
    ),
    "es": ("Comprar {s} online - envío gratis", "{s} para colorear", "Imagen de {s}", "Fotos de {s}", "{s} pegatina"),
    "fr": (
        "{s} acheter en ligne - livraison gratuite", "{s} coloriage", "Photo de {s}", "Autocollant {s}",
        "{s} pas cher",
    ),
}  # fmt: skip
"""By language, filled with the label in that language."""
PAIR = (
    "{s} and {o}", "{s} vs {o}", "{o} and {s}", "{s} with {o}", "{s}, {o}, photo, wallpaper", "From {o} to {s}",
    "{s} in {o}", "{s} / {o}", "{s} next to {o}", "Set of 2: {s} + {o}",
)  # fmt: skip
"""Name two entities."""
NOTHING = (
    "image", "IMG_{n}.jpg", "DSC0{n}", "Image may contain: indoor", "Untitled design ({k})", "photo", "Logo",
    "click to enlarge", "New arrivals spring summer 20{k}", "banner-{n}", "Screenshot 2019-0{d}-1{d} at 10.{k}.22",
    "product image", "Free shipping on orders over $50", "default-thumbnail", "Click here to see our full collection",
    "avatar {n}", "Slide {k} of 40", "no caption available", "Gallery image {k}",
)  # fmt: skip
"""Name nothing."""
SHOP = (
    " | Etsy", " - Redbubble", " | Zazzle", " – eBay", " @ Home24", " | Shutterstock", " - Dreamstime.com",
    " :: The Toy Shed", " | Pinterest", " - AliExpress",
)  # fmt: skip
"""Suffixes."""
FILES = (
    "{s}-300x200.jpg", "{s}_{n}.png", "{s}-{n}-large", "img-{s}-thumb.jpg", "{s}_480x.jpg?v={n}",
)  # fmt: skip
"""File names that became alt-text."""
