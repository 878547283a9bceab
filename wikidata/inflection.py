"""What is written on to a name in running text: case endings, plurals, particles, articles, prepositions.

Rules are by script, for a text does not say its language, and hold only where they lead to a name that the knowledge
base has. They are those that carry most of the words: no consonant changes (Skotlanti, Skotlannissa), no broken plurals
(كلب, كلاب), no second word of a name that is inflected, too.

endings     the end of a word in a text and what stands there in the name: вина is вин + о. The mention is the whole
            word.
prefixes    what Arabic and Hebrew write before a word: prepositions and "and", which are no part of the mention, and
            the article, which is.
particles   what Korean writes behind a word, which is no part of the mention.
"""

from __future__ import annotations

from typing import NamedTuple

from wikidata.function_words import ALL_FUNCTION_WORDS
from wikidata.surface import length

SHORTEST, SHORTEST_CAPITALISED = 4, 3
"""How long a name must be (`surface.length`) to have an ending: in small letters of a script that has capitals, else.
Short words have too many neighbours."""
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
    """The endings of a script, the range of its characters, whether it has capitals, and whether it leaves vowels
    out."""

    first: str
    last: str
    cased: bool
    abjad: bool
    endings: tuple[Ending, ...]


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
SCRIPTS = (
    Script("\u0370", "\u03ff", True, False, _GREEK),
    Script("\u0400", "\u052f", True, False, _CYRILLIC),
    Script("\u0590", "\u05ff", False, True, _HEBREW),
    Script("\u0600", "\u06ff", False, True, _ARABIC),
    Script("\u0900", "\u097f", False, False, _DEVANAGARI),
    Script("\u0980", "\u09ff", False, False, _BENGALI),
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


def bases(form: str, surface: str) -> list[str]:
    """The normal forms that a name may have whose inflected form, or form with an article, this is, likeliest first.

    form     normal form of the mention
    surface  the mention as it is written: capitals decide how short a name may be
    """
    if form.isascii():
        return []
    front, blank, word = form.rpartition(" ")
    found = [form.removeprefix(article) for article in _ARTICLES if form.startswith(article) and len(form) > 4]
    script = next((s for s in SCRIPTS if s.first <= word[-1:] <= s.last), None)
    if script is not None and word not in ALL_FUNCTION_WORDS:
        capital = surface[surface.rfind(" ") + 1 :][:1].isupper()
        shortest = SHORTEST if script.cased and not capital else SHORTEST_CAPITALISED
        for ending in script.endings:
            if word.endswith(ending.letters):
                stem = word.removesuffix(ending.letters)
                if len(stem) >= SHORTEST_STEM and length(stem + ending.base) >= shortest:
                    found.append(front + blank + stem + ending.base)
    return list(dict.fromkeys(found))
