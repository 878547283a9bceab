"""What is written on to a name in running text: case endings, plurals, particles, articles, prepositions.

Rules are by script, for a text does not say its language, and hold only where they lead to a name that the knowledge
base has. In Latin letters they are by language, and only for texts with a letter that few others have: English texts
have none. The rules are those that carry most of the words: no consonant changes (Skotlanti, Skotlannissa), no broken
plurals (كلب, كلاب), no name of which another word than the last is inflected.

endings     the end of a word in a text and what stands there in the name: вина is вин + о. The mention is the whole
            word.
prefixes    what Arabic and Hebrew write before a word: prepositions and "and", which are no part of the mention, and
            the article, which is.
particles   what Korean writes behind a word, which is no part of the mention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wikidata.function_words import ALL_FUNCTION_WORDS
from wikidata.surface import length

SHORTEST = 3
"""How long (`surface.length`) a name with a capital must be to have an ending. A text's first word has its capital from
its place."""
SHORTEST_STEM = 2


class Ending(NamedTuple):
    """The end of a word in a text, and what stands there in the name."""

    letters: str
    base: str


class Prefix(NamedTuple):
    """Letters written before a word, how many of the last of them are its article, and the length (`surface.length`)
    of the shortest word that is looked for behind them."""

    letters: str
    article: int
    shortest: int


class Script(NamedTuple):
    """The endings of a script, or of a language in Latin letters."""

    first: str
    last: str
    """The range of its characters."""
    endings: tuple[Ending, ...]
    shortest: int = SHORTEST
    """How long a name in small letters must be. Words of three letters have too many neighbours where there are many
    endings, and those of four in languages whose ordinary words end as their cases do."""
    abjad: bool = False
    """Does it leave vowels out?"""
    signs: str = ""
    """Letters of which a text must have one."""


def _endings(text: str) -> tuple[Ending, ...]:
    """Lines of "ending of the text: endings of the name", with "-" for none; the longest first."""
    found = []
    for line in text.strip().splitlines():
        letters, _, bases = line.partition(":")
        found += [Ending(letters.strip(), "" if base == "-" else base) for base in bases.split()]
    return tuple(sorted(found, key=lambda ending: -len(ending.letters)))


_CYRILLIC = _endings(
    """
    а: - о
    я: ь й е
    у: - а о
    ю: ь й я е
    ом: - о
    ем: ь й е
    єм: й
    ой: а
    ою: а
    ей: я ь
    єю: я
    е: - а о ь й
    и: - а ь я й
    ы: - а
    і: - а ь я о
    ї: я й
    ью: ь
    ов: -
    ів: -
    ев: й
    їв: й
    ові: -
    еві: ь
    ам: - а о
    ям: я ь е
    ами: - а о
    ями: я ь е
    ах: - а о
    ях: я ь е
    """
)
# As `surface.normal_form` has them: without accents, and with one sigma.
_GREEK = _endings(
    """
    ου: οσ ο
    ο: οσ
    ε: οσ
    οι: οσ
    ων: οσ α η ο ησ
    ουσ: οσ
    ασ: α
    α: ασ ο
    η: ησ
    ησ: η
    εσ: α η ησ
    ιου: ι
    ια: ι
    ιων: ι
    """
)
_BENGALI = _endings(
    """
    \u09c7: -
    \u09c7\u09b0: -
    \u09b0: -
    \u0995\u09c7: -
    \u09a4\u09c7: -
    \u09af\u09bc: -
    \u099f\u09bf: -
    \u099f\u09bf\u09b0: -
    \u099f\u09be: -
    \u099f\u09be\u09b0: -
    \u0997\u09c1\u09b2\u09cb: -
    \u0997\u09c1\u09b2\u09cb\u09b0: -
    \u0997\u09c1\u09b2\u09bf: -
    \u0997\u09c1\u09b2\u09bf\u09b0: -
    \u09b0\u09be: -
    \u09a6\u09c7\u09b0: -
    """
)
_DEVANAGARI = _endings(
    """
    \u0947\u0902: -
    \u094b\u0902: - \u093e
    \u0947: \u093e
    \u093f\u092f\u093e\u0902: \u0940
    \u093f\u092f\u093e\u0901: \u0940
    \u093f\u092f\u094b\u0902: \u0940
    """
)
# Persian plurals and possessives, the "her" of Arabic. Yeh as `scripts.fold` has it.
_ARABIC = _endings(
    """
    ها: -
    هاي: -
    هايي: -
    اي: ا
    وي: و
    شان: -
    مان: -
    تان: -
    """
)
_HEBREW = _endings(
    """
    ים: - ה
    ות: ה ת -
    """
)
# As `surface.normal_form` has them: without dotless i.
_TURKISH_ENDINGS = """
da de ta te dan den tan ten ya ye yi yu yü in un ün nin nun nün la le yla yle lar ler lari leri larin lerin larda lerde
"""
_TURKISH = _endings("\n".join(f"{e}: -" for e in _TURKISH_ENDINGS.split()))
_POLISH = _endings(
    """
    a: -
    u: -
    em: -
    ie: - a
    y: a
    ę: a
    ą: a
    ii: ia
    ię: ia
    ią: ia
    ów: -
    """
)
_CZECH = _endings(
    """
    a: -
    u: - a
    em: -
    ě: - a
    y: a
    ou: a
    ů: -
    ách: y - a
    ska: sko
    sku: sko
    cka: cko
    cku: cko
    """
)
_HUNGARIAN_CASES = """
ba be ban ben ból ből ra re ról ről hoz hez höz tól től nak nek val vel
"""
_HUNGARIAN = _endings(
    "\n".join(
        [
            *(f"á{e}: a\né{e}: e" for e in _HUNGARIAN_CASES.split()),
            *(f"{e}: -" for e in _HUNGARIAN_CASES.split() if len(e) > 2),
        ]
    )
)
_FINNISH_CASES = """
ssa ssä sta stä lla llä lta ltä lle
"""
_FINNISH = _endings(
    "\n".join([*(f"{e}: -" for e in _FINNISH_CASES.split()), *(f"{v}{v}n: {v}\n{v}{v}: {v}" for v in "aäöuyoi")])
)
_SWEDISH = _endings(
    """
    en: - e
    n: -
    et: - e
    ar: - e
    arna: - e
    or: a
    orna: a
    erna: -
    """
)
SCRIPTS = (
    Script("\u0370", "\u03ff", _GREEK, shortest=4),
    Script("\u0400", "\u052f", _CYRILLIC, shortest=4),
    Script("\u0590", "\u05ff", _HEBREW, abjad=True),
    Script("\u0600", "\u06ff", _ARABIC, abjad=True),
    Script("\u0900", "\u097f", _DEVANAGARI),
    Script("\u0980", "\u09ff", _BENGALI),
    *(
        Script("a", "\u024f", endings, shortest=shortest, signs=signs)
        for endings, shortest, signs in (
            (_TURKISH, 5, "ğşı"),
            (_POLISH, 6, "ąćęłńśźż"),
            (_CZECH, 5, "čďěňřšťůž"),
            (_HUNGARIAN, 5, "áéíóőúű"),
            (_FINNISH, 8, "äö"),
            (_SWEDISH, 5, "å"),
        )
    ),
)

_ARTICLES = ("ال", "ה")
# Many words begin with the letter of a preposition: what stands behind it must be longer than behind an article.
PREFIXES: tuple[Prefix, ...] = (
    *(Prefix(before + _ARTICLES[0], 2, 3) for before in ("", "و", "ف", "ب", "ك", "وب")),
    *(Prefix(before, 0, 4) for before in ("لل", "ولل")),  # "for the": the alef of the article is dropped
    *(Prefix(before, 0, 6) for before in ("و", "ف", "ب", "ك", "ل", "وب", "ول")),
    *(Prefix(before + _ARTICLES[1], 1, 4) for before in ("", "ו", "ש", "מ", "כ", "וש")),
    *(Prefix(before, 0, 6) for before in ("ו", "ב", "ל", "מ", "כ", "ש", "וב", "ול", "ומ", "שב", "של")),
)

_PARTICLES = """
    이 가 은 는 을 를 의 에 도 만 와 과 로 으로 나 이나 랑 이랑 야 아 여 께 뿐 들 들이 들은 들을 들의 들과 에서 에게
    에는 에도 에선 에서는 에서도 에서의 에만 에의 까지 까지의 부터 부터의 보다 처럼 마다 밖에 조차 마저 한테 하고
    이고 이며 이라 라는 이라는 이란 란 으로의 로의 으로는 로는 으로서 로서 으로써 로써 만의 만이 과의 와의 이다
    입니다 인 였다 이었다 시 역 산 강 섬 군 구 인들 인의 인이 어 식 풍 행 발 편 제 시의 시에 시에서 역에서 역의 역에
"""
PARTICLES = frozenset(_PARTICLES.split())
"""Particles of Korean, and the syllables that make a place's unit, people or language of its name."""


def signs_in(text: str) -> int:
    """Which of `SCRIPTS` a text may be of by its signs: a bit for each."""
    if text.isascii():
        return UNSIGNED
    found = UNSIGNED
    for char in set(text):
        found |= SIGNS.get(char, 0)
    return found


SIGNS: dict[str, int] = {}
"""The scripts, as bits, that a letter is a sign of."""
for _place, _script in enumerate(SCRIPTS):
    for _sign in {*_script.signs, *_script.signs.upper().replace("I", "İ")}:
        SIGNS[_sign] = SIGNS.get(_sign, 0) | 1 << _place
UNSIGNED = sum(1 << place for place, script in enumerate(SCRIPTS) if not script.signs)
"""The scripts that need no sign."""


def bases(form: str, capital: bool, signs: int = UNSIGNED) -> list[str]:
    """The normal forms that a name may have whose inflected form, or form with an article, this is, likeliest first.

    form     normal form of the mention
    capital  whether its last word has a capital, and not because a text begins with it
    signs    `signs_in` its text
    """
    found = [form.removeprefix(article) for article in _ARTICLES if form.startswith(article) and len(form) > 4]
    for whole in (form, *found.copy()):
        front, blank, word = whole.rpartition(" ")
        found += [front + blank + name for name in _without_ending(word, capital, signs)]
    return list(dict.fromkeys(found))


def _without_ending(word: str, capital: bool, signs: int) -> Iterator[str]:
    if word in ALL_FUNCTION_WORDS:
        return
    for place, script in enumerate(SCRIPTS):
        if not (signs >> place & 1 and script.first <= word[-1:] <= script.last):
            continue
        shortest = SHORTEST if capital else script.shortest
        for ending in script.endings:
            if word.endswith(ending.letters):
                stem = word.removesuffix(ending.letters)
                if len(stem) >= SHORTEST_STEM and length(stem + ending.base) >= shortest:
                    yield stem + ending.base
