"""Names as texts have them: the normal form under which equal names meet, the keys to look a name up by, and which
names are admissible.

Knowledge base and text must agree on one spelling. `normal_form` is applied to both sides; it removes what never tells
two entities apart (case, width, kind of quote or dash, a possessive, surrounding punctuation) and what each script
leaves to the writer (scripts.py). What may tell them apart (number, accents, one word or two) stays, and `lookup_keys`
tries it on the asking side only after the exact form.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache

import pyarrow as pa

from wikidata import scripts

MAX_CHARS = 120
"""Longer names are titles or whole sentences; no alt-text repeats them to the letter."""
MAX_WORDS = 12
MAX_KEYS = 16
LANGUAGES = ("en", "mul", "en-gb", "en-ca", "en-us")
"""Label languages in falling preference. `mul` is Wikidata's "same in all languages"; English labels move there."""

APOSTROPHES = (
    "'`\u00b4\u2018\u2019\u201a\u201b\u2032\u2035\uff07\u02b9\u02bb\u02bc\u02bd\u02be\u02bf"
    "\u02c8\u02ca\u02cb\u1fbd\u1fbf\u055a\u05f3\ua78b\ua78c"
)
"""What stands for an apostrophe: quotation marks, primes, accents without a letter, the okina of Hawaiian, ayin and
hamza of transliterations, the saltillo. Few keyboards have the right one, so they are one letter."""
_DOUBLE_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u2036\uff02\u05f4"
_DASHES = (
    "-_\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\u30fb\ufe58\ufe63\uff0d"
    "\u00b7\u05be\u2022\u2027\u2219\u22c5\u30a0"  # middle dots, bullets for them, the maqaf of Hebrew
)
_DROPPED = (
    "\u2122\u00ae\u00a9\u2120\u2117\u00ad\ufeff\ufe0e\ufe0f\u061c"
    + "".join(map(chr, range(0x200B, 0x2010)))
    + "".join(map(chr, range(0x202A, 0x202F)))
    + "".join(map(chr, range(0x2060, 0x2070)))
)
# Before NFKC, which would make "tm" of the trademark sign and a blank with an accent of the acute accent.
_FOLD: Mapping[int, str] = {
    **{ord(c): "'" for c in APOSTROPHES},
    **{ord(c): '"' for c in _DOUBLE_QUOTES},
    **{ord(c): " " for c in _DASHES},
    **{ord(c): "" for c in _DROPPED},
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA1)), " "),
    0x131: "i",  # the dotless i, whose capital is I
}
_DOT = "\u0307"
LEADING = " .,;:!?'\"*~^|\\/<>=&%@#+$\u2026\u2022\u00a1\u00bf\u00a7\u00b6\u2020\u2021\u3001\u3002"
"""What no normal form begins with."""
_TRAILING = LEADING.replace("#", "").replace("+", "")  # C#, C++, Google+
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_CLOSERS = {v: k for k, v in _BRACKETS.items()}
_POSSESSIVE = re.compile(r"(?<=\w)'s\Z")
_QUALIFIER = re.compile(r"(.*\S)\s+\([^()]+\)\s*\Z", re.DOTALL)
_SPACES = re.compile(r"\s+")
_PLAIN = re.compile(r"[a-z0-9]+(?: [a-z0-9]+)*\Z")
_OWN_FORM = "a-z0-9\u00e0-\u00f6\u00f8-\u012f\u0134-\u013e\u0141-\u0148\u014a-\u017e"
"""Latin letters that are their own form: no ligature, no s or i that is written in two ways."""
_PLAIN_LATIN = re.compile(rf"[{_OWN_FORM}]+(?: [{_OWN_FORM}]+)*\Z")
_TO_FOLD = re.compile(r"[-_`\x00-\x1f\x7f]|  ")
"""What of ASCII `_FOLD` and `_SPACES` change."""


def normal_form(surface: str) -> str:
    """The spelling under which a name is stored and looked up; "" when nothing is left.

    NFKC and case folding, the same for a name in capitals, in small letters and as a title (the Turkish i's are one
    with i), quotes and apostrophes unified, dashes and underscores read as blanks ("T-shirt" is "t shirt"), white space
    collapsed, control and format characters and trademark signs dropped, surrounding
    punctuation and a final possessive 's stripped, and what each script leaves to the writer (`scripts.fold`,
    `scripts.without_optional_blanks`). Accents of Latin letters and inner punctuation stay.
    `normal_form(normal_form(x)) == normal_form(x)`.
    """
    # Most names are plain, and need no more.
    form = surface.lower()
    if surface.isascii():
        return form if _PLAIN.match(form) else _ascii_form(form)
    return form if _PLAIN_LATIN.match(form) else _any_form(surface)


def _ascii_form(form: str) -> str:
    """`normal_form` of small letters of ASCII."""
    while True:
        before = form
        if _TO_FOLD.search(form):
            form = _SPACES.sub(" ", form.translate(_FOLD))
        form = _strip(form)
        if form.endswith("'s"):
            form = _POSSESSIVE.sub("", form)
        if form == before or _PLAIN.match(form):
            return form


def _any_form(form: str) -> str:
    """`normal_form` of any string."""
    while True:
        before = form
        if not form.isascii():
            # The cases of a letter fold alike only when it is taken apart (U+0345). casefold can undo NFKC and the
            # reverse (U+0345, U+1E9E): hence the loop to a fixed point.
            folded = scripts.fold(unicodedata.normalize("NFKD", form.translate(_FOLD)).casefold())
            form = unicodedata.normalize("NFKC", _undotted(folded) if _DOT in folded else folded)
        form = _SPACES.sub(" ", form.translate(_FOLD))
        if not form.isascii():
            form = scripts.without_optional_blanks(form)
        form = _POSSESSIVE.sub("", _strip(form))
        if form == before or _PLAIN_LATIN.match(form):
            return form
        if form.isascii():
            return _ascii_form(form)


def _undotted(form: str) -> str:
    """Without the dots above an i, which has one: a dotted capital I (U+0130) in small letters is an i and a dot."""
    kept: list[str] = []
    on_i = False
    for char in form:
        if not unicodedata.combining(char):
            on_i = char == "i"
        elif on_i and char == _DOT:
            continue
        kept.append(char)
    return "".join(kept)


def _strip(form: str) -> str:
    """Without surrounding punctuation; brackets only where they have no partner, or enclose all."""
    if form and form[0].isalnum() and form[-1].isalnum():
        return form
    while True:
        before = form
        form = form.lstrip(LEADING).rstrip(_TRAILING)
        if form and form[0] in _BRACKETS:
            partner = form.find(_BRACKETS[form[0]])
            if partner < 0:
                form = form[1:]
            elif partner == len(form) - 1:
                form = form[1:-1]
        if form and form[-1] in _CLOSERS and _CLOSERS[form[-1]] not in form:
            form = form[:-1]
        if form and form[0] in _CLOSERS:
            form = form[1:]
        if form and form[-1] in _BRACKETS:
            form = form[:-1]
        if form == before:
            return form


def plain_words(name: str) -> list[str]:
    """The words of a name of one, two or three words of ASCII's letters with a blank between them; [] for others.

    Such a name is admissible, and its normal form is itself in small letters. Most names are such.
    """
    if not name.isascii() or not 1 < len(name) <= MAX_CHARS:
        return []
    if name.isalpha():
        return [name]
    words = name.split(" ")
    return words if len(words) <= 3 and all(map(str.isalpha, words)) else []


def normal_forms(surfaces: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> pa.Array:
    """`normal_form` of each: string in, string out, null stays null. Equal surfaces are normalised once."""
    array = surfaces if isinstance(surfaces, pa.Array | pa.ChunkedArray) else pa.array(surfaces, pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    coded = array.dictionary_encode()
    forms = pa.array([normal_form(s) for s in coded.dictionary.to_pylist()], pa.string())
    return forms.take(coded.indices)


_SYLLABLES = ("CJK ", "HANGUL SYLLABLE", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE", "ETHIOPIC SYLLABLE")


@lru_cache(maxsize=1 << 16)
def _is_syllable(char: str) -> bool:
    return unicodedata.name(char, "").startswith(_SYLLABLES)


def length(form: str) -> int:
    """How long a name is, in letters of an alphabet.

    A character that writes a word or a syllable (Han, Hangul, kana …) counts as two: "北京" is as long as "rome",
    not as "uk". Arabic and Hebrew leave vowels out, so two of their letters count as three: "رم" is as much as "rome".
    In Thai, Lao, Khmer and Myanmar each letter and each sign counts. All that asks how long a name must be, asks here.
    """
    if form.isascii():
        return len(form)
    return len(form) + sum(map(_is_syllable, form)) + sum(map(scripts.is_abjad, form)) // 2


class Inadmissible(str, Enum):
    """Why a normal form is not kept as a name."""

    EMPTY = "empty"
    SINGLE_CHARACTER = "single_character"
    NO_LETTER = "no_letter"
    """Numbers, dates, emoji, signs."""
    TOO_LONG = "too_long"
    ADDRESS = "address"
    """A web address."""


def inadmissible(form: str) -> Inadmissible | None:
    """Why this normal form cannot be the name of anything in running text, or None."""
    if not form:
        return Inadmissible.EMPTY
    if len(form) == 1:
        return Inadmissible.SINGLE_CHARACTER
    if len(form) > MAX_CHARS or form.count(" ") >= MAX_WORDS:
        return Inadmissible.TOO_LONG
    if not form[0].isalpha() and not any(map(str.isalpha, form)):
        return Inadmissible.NO_LETTER
    if "://" in form or form.startswith("www."):
        return Inadmissible.ADDRESS
    return None


def without_qualifier(title: str) -> str:
    """A page title without its qualifier in brackets: "Mercury (planet)" is "Mercury"."""
    match = _QUALIFIER.match(title) if "(" in title else None
    return match.group(1) if match else title


def unaccented(form: str) -> str:
    """Without the accents of Latin letters ("reykjavík" is "reykjavik"); other scripts stay as they are."""
    if form.isascii():
        return form
    kept: list[str] = []
    for char in unicodedata.normalize("NFD", form):
        if unicodedata.combining(char) and kept and kept[-1].isascii():
            continue
        kept.append(_LIGATURES.get(char, char))
    return unicodedata.normalize("NFC", "".join(kept))


_LIGATURES = {"\u00f8": "o", "\u0142": "l", "\u0111": "d", "\u00e6": "ae", "\u0153": "oe", "\u0131": "i", "\u00f0": "d"}


def is_latin(text: str) -> bool:
    """Are all its letters Latin, and is there one?"""
    letters = [c for c in text if c.isalpha()]
    return bool(letters) and all(c.isascii() or _latin_letter(c) for c in letters)


@lru_cache(maxsize=4096)
def _latin_letter(char: str) -> bool:
    return unicodedata.name(char, "").startswith(("LATIN", "MODIFIER LETTER"))


def choose_name(
    labels: Mapping[str, str], title: str | None, languages: Sequence[str] = LANGUAGES, max_labels: int = 64
) -> tuple[str, str] | None:
    """The name of an entity and its language, or None: the first label of `languages`, else the title of its page
    (language "title", qualifier removed), else the first label in Latin letters by language code, of the first
    `max_labels`.

    Wikidata deletes English labels that equal the `mul` one (Douglas Adams has no `en`), so others are asked, too.
    """
    for language in languages:
        label = labels.get(language, "").strip()
        if label:
            return label, language
    if title and title.strip():
        return without_qualifier(title.strip()), "title"
    for language in sorted(labels)[:max_labels]:
        label = labels[language].strip()
        if is_latin(label):
            return label, language
    return None


_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "louse": "lice", "ox": "oxen", "die": "dice", "penny": "pence",
    "cactus": "cacti", "fungus": "fungi", "octopus": "octopi", "hippopotamus": "hippopotami", "nucleus": "nuclei",
    "stimulus": "stimuli", "alumnus": "alumni", "bacterium": "bacteria", "medium": "media", "criterion": "criteria",
    "phenomenon": "phenomena", "vertebra": "vertebrae", "larva": "larvae", "alga": "algae", "antenna": "antennae",
    "nebula": "nebulae", "supernova": "supernovae", "matrix": "matrices", "vertex": "vertices", "index": "indices",
    "leaf": "leaves", "loaf": "loaves", "thief": "thieves", "half": "halves", "calf": "calves", "elf": "elves",
    "self": "selves", "shelf": "shelves", "wolf": "wolves", "scarf": "scarves", "hoof": "hooves", "dwarf": "dwarves",
    "sheaf": "sheaves", "knife": "knives", "wife": "wives", "life": "lives", "quiz": "quizzes",
}  # fmt: skip
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}
_COMPOUND_ENDS = ("man", "woman", "child", "foot", "tooth", "goose", "mouse", "fish", "leaf", "knife", "wolf")
_WORD = re.compile(r"[^\W\d_]+\Z")


def singulars(word: str) -> list[str]:
    """What an English plural may be the plural of, likeliest first; [] if it looks like none ("glass", "bus",
    "iris")."""
    if word in _SINGULAR:
        return [_SINGULAR[word]]
    for end in _COMPOUND_ENDS:
        plural = _IRREGULAR.get(end)
        if plural and word.endswith(plural) and len(word) > len(plural) + 1:
            return [word[: -len(plural)] + end]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return []
    if word.endswith("ies") and len(word) > 4:
        return [word[:-3] + "y", word[:-1]]
    if word.endswith("ves"):
        return [word[:-1], word[:-3] + "f", word[:-3] + "fe"]
    if word.endswith(("ches", "shes", "xes", "sses", "zes", "oes")):
        return [word[:-2], word[:-1]]
    if word.endswith("ses"):
        return [word[:-1], word[:-2]]
    return [word[:-1]]


def plurals(word: str) -> list[str]:
    """The regular English plurals of a word, likeliest first, and an irregular one where there is one."""
    if word in _IRREGULAR:
        regular = [word + ("es" if word.endswith(("s", "x")) else "s")]
        return [_IRREGULAR[word], *regular] if word in ("octopus", "cactus", "dwarf", "scarf", "hoof", "index") else [
            _IRREGULAR[word]
        ]  # fmt: skip
    for end in _COMPOUND_ENDS:
        plural = _IRREGULAR.get(end)
        if plural and word.endswith(end) and len(word) > len(end) + 1 and word not in ("human", "german", "roman"):
            return [word[: -len(end)] + plural]
    if word.endswith("y") and len(word) > 2 and word[-2] not in "aeiou":
        return [word[:-1] + "ies"]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return [word + "es"]
    if word.endswith("o") and len(word) > 2 and word[-2] not in "aeiou":
        return [word + "es", word + "s"]
    return [word + "s"]


def inflections(form: str) -> list[str]:
    """The singular and plural variants of a normal form, likeliest first, itself left out.

    English inflects the last word ("granny smith apples"), or the one before "of" ("cups of tea"). A form whose word
    has no Latin letters, or that is shorter than three letters, has none.
    """
    before_of, of, after_of = form.partition(" of ")
    front, _, word = before_of.rpartition(" ")
    if len(word) < 3 or not _WORD.match(word):
        return []
    head, tail = (front + " " if front else ""), of + after_of
    variants = singulars(word) or plurals(word)
    return [head + v + tail for v in variants]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HONORIFICS = _words(
    """mr mrs ms miss dr prof professor sir dame lord lady saint st king queen prince princess emperor pope president
    premier chancellor minister secretary senator sen congressman representative rep governor gov mayor judge justice
    general gen colonel col captain capt major lieutenant lt sergeant sgt admiral archbishop bishop cardinal rabbi imam
    sheikh ayatollah coach actor actress singer author astronaut director pm former presidente président señor señora
    monsieur madame herr frau secretary-general"""
)
_TITLES = (
    "deputy prime minister ", "prime minister ", "vice president ", "foreign minister ", "secretary of state ",
    "attorney general ", "secretary general ", "lord mayor ", "the late ",
)  # fmt: skip
_COMPANY = _words("inc incorporated corp corporation co company ltd limited plc llc gmbh ag sa nv")
_GENERATION = _words("jr sr ii iii iv")
_ADDED_LAST = _COMPANY | _GENERATION
_KINDS_OF_PLACE = ("ประเทศ", "จังหวัด", "ປະເທດ", "ប្រទេស")  # country, province
_ADDED = re.compile(r"\A(.*\w)(?:,\s.*|\s\([^()]*\))\Z", re.DOTALL)
_INITIAL = re.compile(r"(?:\w\.?|(?:\w\.)+\w?)\Z")
_RUN_INITIALS = re.compile(r"\.(?=\w)")
_SLASH = re.compile(r" ?/ ?")
_PARTICLES = _words("de da di du del della von van der den ter la le al el bin ibn dos das do st y e of")


def _is_initial(word: str) -> bool:
    if len(word) > 5 or (len(word) > 1 and "." not in word):
        return False
    return bool(_INITIAL.match(word)) and not word.isdigit()


def _bare(form: str) -> str:
    """A normal form without its first "the", a company's form, a generation, initials in the middle."""
    if " " not in form:
        return form
    words = form.split(" ")
    count = len(words)
    if count > 1 and words[0] == "the":
        words = words[1:]
    while len(words) > 1 and words[-1].strip(".,") in _ADDED_LAST:
        words = words[:-1]
        if len(words) > 1 and words[-1] in ("and", "&"):
            words = words[:-1]
    if len(words) > 2:
        words = [words[0], *[w for w in words[1:-1] if not _is_initial(w)], words[-1]]
    return normal_form(" ".join(words)) if len(words) < count else form


def is_title(form: str) -> bool:
    """Whether a normal form is, or ends with, what people are called before their name: "british prime minister"."""
    return form.rpartition(" ")[2].rstrip(".") in _HONORIFICS


def _untitled(form: str) -> str:
    """A normal form without the honorifics before it."""
    for title in _TITLES:
        form = form.removeprefix(title)
    words = form.split(" ")
    while len(words) > 1 and words[0].rstrip(".") in _HONORIFICS:
        words = words[1:]
    return " ".join(words)


def short_forms(name: str, exact: str | None = None) -> list[str]:
    """Shorter normal forms under which texts name the same thing, distinct, without that of the name itself.

    "Ballesteros, Cagayan" is "ballesteros", "Garlic (allium sativum)" is "garlic", "Celanese Corporation" is
    "celanese", "Hiram Bingham III" is "hiram bingham", "Johnson & Johnson" is "johnson and johnson", "Chelsea F.C." is
    "chelsea", "MV Sirius Star" is "sirius star", "Little Missouri River" is "little missouri", "2006 FIFA World Cup" is
    "2006 world cup", "ประเทศลาว" (country of Laos) is "ลาว". `exact` is the normal form of the name, where it is known
    already.
    """
    exact = normal_form(name) if exact is None else exact
    bare = _bare(exact)
    found = [bare] if bare != exact else []
    added = _ADDED.match(name) if "," in name or "(" in name else None
    if added:
        short = normal_form(added.group(1))
        found += [short, _bare(short)]
    if " & " in exact:
        found.append(exact.replace(" & ", " and "))
    words = name.split()
    if len(words) > 1 and name[:1].isupper():
        first, last = words[0], words[-1]
        if last[:1].isupper() and last.casefold() in _CLUBS:
            found.append(normal_form(" ".join(words[:-1])))
        if first[:1].isupper() and first.casefold() in _CLUBS:
            found.append(normal_form(" ".join(words[1:])))
        if len(words) > 2 and first.isupper() and first.casefold() in _SHIPS:
            found.append(normal_form(" ".join(words[1:])))
        elif len(words) > 2 and last[:1].isupper() and last.casefold() in _TYPE_WORDS:
            found.append(normal_form(" ".join(words[:-1])))
    if len(words) > 3 and len(words[0]) == 4 and words[0].isdigit() and words[1].isupper() and words[1].isalpha():
        found.append(normal_form(" ".join([words[0], *words[2:]])))
    # Thai, Lao and Khmer write what a place is before its name, and texts leave it out.
    if not exact.isascii():
        found += [rest for kind in _KINDS_OF_PLACE if (rest := exact.removeprefix(kind)) != exact]
    return [f for f in dict.fromkeys(found) if f and f != exact] if found else found


_RANKS = _words(
    """duke duchess archduke archduchess earl count countess marquess marquis marchioness viscount viscountess baron
    baroness lord lady prince princess margrave margravine landgrave elector graf freiherr"""
)
_BEFORE_NAMES = _HONORIFICS | _RANKS
_RANK = re.compile(rf"(?:(\d+(?:st|nd|rd|th)) )?((?:{'|'.join(sorted(_RANKS))})\b.*)", re.IGNORECASE)
_REGNAL = re.compile(r"(?=[IVX]+\Z)X{0,3}(?:IX|IV|V?I{0,3})\Z")
_SMALL = _words("a an and & at by de del des do du for in of on the to und y")
_SHIPS = _words("uss hms hmas hmcs ss ms mv rms rv sms")
_TYPE_WORDS = _words(
    """river lake island islands volcano province region district county city party satellite rocket motorcycle forces
    newspaper magazine corporation airlines"""
)
_OF_A_PLACE = re.compile(r"(?:province|city|state|island|town|village|district|county|region|nation|republic) of (?=.)")
_SPELLED_OUT = {
    "us": "united states", "u.s": "united states", "u.s.": "united states", "uk": "united kingdom",
    "u.k.": "united kingdom", "un": "united nations", "u.n.": "united nations", "eu": "european union",
    "st": "saint", "st.": "saint", "mt": "mount", "mt.": "mount", "ft": "fort", "ft.": "fort",
}  # fmt: skip
_CLUBS = _words("fc f.c. afc a.f.c. cf c.f. sc s.c.")
_LEFT_OUT_FIRST = _CLUBS | _SHIPS | {"the"}
_LEFT_OUT_LAST = _CLUBS | _TYPE_WORDS | _ADDED_LAST
_DIGIT = re.compile(r"\d")
_DESIGNATION = re.compile(r"(?=.*\d)(?=.*[A-Z])[A-Z][A-Za-z]{0,3}[-\u2010\u2011]?\d[\w-]*\Z")


def _last(word: str) -> str:
    """A last or first name as it is spelled, "" where a word is none."""
    form = normal_form(word)
    return word.strip(".,") if len(form) > 2 and form.replace(" ", "").replace("'", "").isalpha() else ""


def _words_of_person(name: str) -> list[str]:
    """The words of what looks like a person's name, without what stands behind a comma and without a generation; []
    for all else."""
    name = name.partition(",")[0]
    words = name.split()
    while len(words) > 2 and words[-1].strip(".").casefold() in _GENERATION:
        words.pop()
    if not 2 <= len(words) <= 5 or any(map(str.isdigit, name)) or not words[0][:1].isupper():
        return []
    if not all(w[:1].isupper() or w.casefold() in _PARTICLES for w in words) or not words[-1][:1].isupper():
        return []
    return words


def parts_of_person(name: str) -> list[tuple[str, str]]:
    """The parts by which texts name a person alone, as they are spelled, each with its kind.

    "surname"  the last name; behind a particle, or one of two, also with what stands before it: "Wilhelmus van den
               Bergh" is "van den Bergh", "Juan Bravo Murillo" is "Bravo Murillo"; what a title without "of" gives:
               "Charles Monck, 4th Viscount Monck" is "Monck"
    "given"    the first name: "Petula Clark" is "Petula", "Ramiro I of Asturias" is "Ramiro"
    "part"     all but the last or the middle name ("Vicente Fox Quesada" is "Vicente Fox"), what stands before "of"
               ("Faisal II of Iraq" is "Faisal II"), a title ("Thomas Osborne, 1st Duke of Leeds" is "Duke of Leeds")
    """
    front, comma, behind = name.partition(", ")
    titled = _RANK.match(behind) if comma else None
    found = _of_title(front, *titled.groups()) if titled else []
    reigning, of, _ = front.partition(" of ")
    if of:
        words = reigning.split()
        while len(words) > 1 and words[0].rstrip(".").casefold() in _BEFORE_NAMES:
            words = words[1:]
        if words and all(w[:1].isupper() for w in words):
            found += [(" ".join(words), "part")] if len(words) > 1 else []
            found.append((_last(words[0]), "given"))
        return [part for part in found if part[0]]
    words = _words_of_person(name)
    if not words:
        return [part for part in found if part[0]]
    last = len(words) - 1
    if not _REGNAL.match(words[-1]):
        small = [w.casefold() in _PARTICLES for w in words]
        found.append((_last(words[-1]), "surname"))
        begin = last
        while begin > 1 and small[begin - 1]:
            begin -= 1
        if last >= 2:
            found.append((" ".join(words[begin if begin < last else last - 1 :]), "surname"))
        if last >= 2 and not any(small):
            found += [(" ".join(words[:-1]), "part"), (f"{words[0]} {words[-1]}", "part")]
    found.append((_last(words[0]), "given"))
    return [part for part in found if part[0]]


def _of_title(front: str, ordinal: str | None, title: str) -> list[tuple[str, str]]:
    """What a title behind a comma makes of a person's name."""
    rank, _, holds = title.partition(" ")
    found = [(f"{ordinal} {title}", "part")] if ordinal else []
    found.append((title, "part"))
    if rank.casefold() in ("prince", "princess"):
        found.append((f"{rank} {front.split(' ')[0]}", "part"))
    elif holds:
        found.append((f"Lord {holds.removeprefix('of ')}", "part"))
        if not holds.startswith("of "):
            found.append((_last(holds.partition(" of ")[0]), "surname"))
    return found


def acronyms(name: str) -> list[str]:
    """Capital letters and figures that stand for a longer name, as they are spelled.

    The initials of three capitalised words or more, small ones between them left out: "Food and Drug Administration" is
    "FDA". What a maker calls its product, and that with all behind it: "Northrop Grumman B-2 Spirit" is "B-2" and
    "B-2 Spirit".
    """
    words = name.removeprefix("The ").split()
    found: list[str] = []
    if not words or not words[0][:1].isupper():
        return found
    for at, word in enumerate(words[1:], 1) if _DIGIT.search(name) else ():
        if _DESIGNATION.match(word) and len(word) > 2:
            found = [word, " ".join(words[at:])]
            break
    content = [w for w in words if w.casefold() not in _SMALL] if len(words) > 2 else []
    if 3 <= len(content) <= 7 and all(w[:1].isupper() for w in content):
        found.append("".join(w[0] for w in content))
    return [*dict.fromkeys(found)] if found else found


def stands_alone(words: Sequence[str]) -> bool:
    """Whether neither `short_forms` nor `acronyms` makes anything of the name of these `plain_words`. Where it says
    False they still may not."""
    count = len(words)
    if count == 1:
        return True
    if words[0].lower() in _LEFT_OUT_FIRST or words[-1].lower() in _LEFT_OUT_LAST:
        return False
    return count == 2 or (len(words[1]) > 1 and not (words[1][0].isupper() and words[2][0].isupper()))


@lru_cache(maxsize=1 << 16)
def shorter(form: str) -> tuple[tuple[str, bool], ...]:
    """By what a text goes on to name what it has named by this normal form, and whether these are its initials.

    "angela dorothea merkel" is "angela", "merkel", "angela dorothea", "dorothea merkel"; "united nations" is "un".
    """
    words = form.split(" ")
    if not 2 <= len(words) <= MAX_WORDS:
        return ()
    content = [w for w in words if w not in _SMALL]
    found = dict.fromkeys([words[0], words[-1], " ".join(words[1:]), " ".join(words[:-1])], False)
    if 2 <= len(content) <= 7:
        found["".join(w[0] for w in content)] = True
    return tuple((part, initials) for part, initials in found.items() if len(part) > 1 and part not in _SMALL)


def lookup_keys(surface: str) -> list[str]:
    """The normal forms to look a surface up by, the exact one first; the first that the knowledge base holds is meant.

    After the exact form: singulars or plurals, without accents, "and" for "&", without the dots of an abbreviation
    ("u.s.a" is "usa") and with a blank behind each ("o.j. simpson" is "o. j. simpson"), with blanks around a slash,
    without apostrophes, without article, company form, generation or initials, without honorifics ("president obama"),
    two words as one ("sea horse" is "seahorse"), with a first word spelled out ("u.s. senate" is "united states
    senate"), without the word that says what it is ("likud party"). Distinct, at most `MAX_KEYS`, [] for a surface
    without normal form.
    """
    exact = normal_form(surface)
    if not exact:
        return []
    keys = [exact, *inflections(exact)]
    plain = unaccented(exact)
    if plain != exact:
        keys += [plain, *inflections(plain)]
    if " & " in plain:
        keys.append(plain.replace(" & ", " and "))
    if "." in plain:
        keys += [normal_form(plain.replace(".", "")), normal_form(_RUN_INITIALS.sub(". ", plain))]
    if "/" in plain:
        keys.append(normal_form(_SLASH.sub(" / ", plain)))
    if "'" in plain:
        keys.append(normal_form(plain.replace("'s ", " ")))
        keys.append(normal_form(plain.replace("'", "")))
    if " " in plain:
        bare = _bare(plain)
        keys.append(bare)
        untitled = _untitled(bare)
        if untitled != bare:
            keys += [untitled, _bare(untitled)]
        if plain.count(" ") == 1:
            joined = plain.replace(" ", "")
            keys += [joined, *inflections(joined)]
        first, _, rest = plain.partition(" ")
        if first in _SPELLED_OUT:
            keys.append(f"{_SPELLED_OUT[first]} {rest}")
        front, _, last = plain.rpartition(" ")
        if last in _TYPE_WORDS:
            keys.append(front)
        if of_a_place := _OF_A_PLACE.match(plain):
            keys.append(plain[of_a_place.end() :])
    return [k for k in dict.fromkeys(keys) if k][:MAX_KEYS]
