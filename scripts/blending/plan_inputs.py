"""The inputs of a plan, checked before they are used.

Token tables must belong to their records and to each other, images must exist, and the hold-out must have been decided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.template import INLINE
from scripts.blending.corpus import Corpus
from scripts.blending.truncation import TemplateCounts
from scripts.common.errors import UserError
from scripts.common.files import read_json, read_table


@dataclass(frozen=True)
class TokenTables:
    """What the token tables of a plan share, from their manifests.

    `identity`: see `tokens_identity.py`. `template`: tokens of the fixed parts of a conversation. `records`: hash of
    each dataset's records, whose texts were counted.
    """

    identity: str
    template: TemplateCounts
    records: dict[str, str]


def read_token_tables(
    records: Path,
    tokens: Path,
    datasets: list[str],
    max_images: int,
    followup_datasets: set[str],
    joined_datasets: set[str],
) -> TokenTables:
    """Check the token tables' manifests of `datasets` against each other and against the records.

    `followup_datasets` are those whose questions are also counted as follow-ups of a join, `joined_datasets` all that
    a join shows.

    Raises:
        UserError: tables are missing, or were counted in different ways, for other records, for too few images or
            without follow-ups; or a join shows records whose images stand inside their questions.
    """
    manifests = {}
    for name in datasets:
        for path, step in ((records / f"{name}.report.json", "convert"), (tokens / f"{name}.json", "count_tokens")):
            if not path.exists():
                raise UserError(f"the blend needs {name}, but {path} does not exist: run {step} for this dataset first")
        manifests[name] = read_json(tokens / f"{name}.json")
        if manifests[name]["records_sha256"] != read_json(records / f"{name}.report.json")["sha256"]:
            raise UserError(
                f"{tokens / name}.json counts other records than {records / name}.parquet: "
                f"run count_tokens for {name} again"
            )
    first = datasets[0]
    for name in datasets:
        if manifests[name]["identity"] != manifests[first]["identity"]:
            raise UserError(
                f"{tokens}: {name} and {first} were counted with different tokenizers, templates or tokens per image: "
                "run count_tokens for all datasets of the blend with the same settings"
            )
        counted = manifests[name]["max_images"]
        if counted < max_images:
            raise UserError(
                f"the blend allows {max_images} images, but the tokens of {name} are counted for {counted}: "
                "raise max_images in the section `tokens`, or lower it in the blend"
            )
        if name in followup_datasets and not manifests[name]["followups"]:
            raise UserError(
                f"{tokens / name}.json counts no follow-ups, which a join of the blend shows: "
                f"run count_tokens for {name} again, with --followups"
            )
        inline = manifests[name]["template"].get("images") == INLINE
        if name in joined_datasets and inline and manifests[name]["shows_images_in_questions"]:
            raise UserError(
                f"a join of the blend shows {name}, whose images stand inside its questions: it cannot show an image "
                "there that an earlier question has shown. Write `images: before` in the template of the section "
                f"`tokens`, or use {name} without the join"
            )
    return TokenTables(
        identity=manifests[first]["identity"],
        template=TemplateCounts.from_manifest(manifests[first]),
        records={name: manifest["records_sha256"] for name, manifest in manifests.items()},
    )


def check_records(records: Path, planned: Mapping[str, str]) -> None:
    """Check that the records are still those of a plan, by the hash of each dataset.

    Raises:
        UserError: they are not, so their texts may have other lengths than the plan counted.
    """
    for name, sha256 in planned.items():
        if read_json(records / f"{name}.report.json")["sha256"] != sha256:
            raise UserError(f"{records / name}.parquet has changed since the plan: run count_tokens and plan again")


def check_images(corpus: Corpus, media: Mapping[str, Path]) -> None:
    """Check that every image that the records name is in the media stores.

    Raises:
        UserError: an image or a whole source is not there.
    """
    sources, keys = corpus.catalogue.flatten()
    for source in sorted(set(sources.to_pylist())):
        if source not in media:
            raise UserError(f"the records show images of {source}: give its media folder with --media {source}=FOLDER")
        index = media[source] / "index.parquet"
        if not index.exists():
            raise UserError(f"{index} does not exist: run shard and index for the source {source} first")
        named = keys.filter(pc.equal(sources, source))
        present = pc.is_in(named, value_set=read_table(index, columns=["key"])["key"])
        absent = named.filter(pc.invert(present))
        if len(absent):
            raise UserError(
                f"the records show {len(absent)} images that {index} does not hold, such as {absent[0].as_py()}: "
                "run convert again"
            )


def read_held_out(corpus: Corpus, split: Path) -> np.ndarray:
    """Whether each image of the catalogue is kept for evaluation, (images,) bool.

    Raises:
        UserError: the hold-out has not been decided.
    """
    path = split / "heldout.parquet"
    if not path.exists():
        raise UserError(f"{path} does not exist: run holdout first")
    names: pa.Table = read_table(path, columns=["source", "key"])
    return corpus.images_in(names)


def equal_images(corpus: Corpus, media: Mapping[str, Path], marked: np.ndarray) -> np.ndarray:
    """Which images of the catalogue have the content of one of those that `marked` marks, (images,) bool.

    The media index knows the content: the same picture may lie under two names, or in two sources.
    """
    sources, keys = corpus.catalogue.flatten()
    contents = []
    # The catalogue is sorted by source, so the parts come in its order.
    for source in sorted(set(sources.to_pylist())):
        index = read_table(media[source] / "index.parquet", columns=["key", "sha256"])
        places = pc.index_in(keys.filter(pc.equal(sources, source)), value_set=index["key"])
        contents.append(index["sha256"].combine_chunks().take(places))
    sha256 = pa.concat_arrays(contents) if contents else pa.array([], pa.string())
    return pc.is_in(sha256, value_set=sha256.filter(pa.array(marked))).to_numpy(zero_copy_only=False)


def media_folders(pairs: list[str]) -> dict[str, Path]:
    """Parse `SOURCE=FOLDER` arguments.

    Raises:
        UserError: an argument is not of this form.
    """
    folders = {}
    for pair in pairs:
        source, sign, folder = pair.partition("=")
        if not (source and sign and folder):
            raise UserError(f"--media {pair}: must be SOURCE=FOLDER, such as coco=media/coco")
        folders[source] = Path(folder)
    return folders
