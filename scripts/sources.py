"""The registry: which datasets exist, what they need on disk, where that comes from, and under which licence.

Two tables of plain data. A *source* is something one obtains as a whole (a folder of images, a set of annotation
files); a *dataset* turns annotation files and images of one or more sources into conversations through its adapter.
Paths are those of the original project, below the user's data path. Known sizes, counts and hashes are for comparison:
they never exclude a smaller or newer copy.
"""

from collections.abc import Iterable
from dataclasses import dataclass

COCO_LICENCE = "Flickr terms (images), CC-BY-4.0 (annotations)"


@dataclass(frozen=True)
class AnnotationFile:
    """A JSON file of rows.

    Attributes:
        path: below the data path.
        container: "list", or "dict" where the rows are the values of an object and its keys their ids.
        key: member of the top-level object that holds the container; None if the container is the top level.
        bytes, sha256: of the published file, where known.
    """

    path: str
    container: str = "list"
    key: str | None = None
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """Something that is obtained and checked as a whole.

    Attributes:
        files: annotation files.
        folders: folders of images below the data path, each ending in "/".
        optional: those of `folders` that may be absent; what they lack is counted as missing images.
        how_to_get: what a person does to have it.
        addresses: where the published files are.
    """

    name: str
    licence: str
    how_to_get: str
    files: tuple[AnnotationFile, ...] = ()
    folders: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def paths(self) -> list[str]:
        """All that belongs to the source, below the data path."""
        return [*(file.path for file in self.files), *self.folders]


@dataclass(frozen=True)
class Dataset:
    """Conversations made of one or more sources.

    Attributes:
        files: annotation files that the dataset reads.
        image_sources: sources of its images.
        licence: of the conversations.
        adapter: module in `scripts/adapters`; None while there is none.
        expected: rows of the published files, where known.
        parts: datasets that it is a join of; the plan makes such a dataset, it has no adapter and no records.
    """

    name: str
    licence: str
    files: tuple[str, ...] = ()
    image_sources: tuple[str, ...] = ()
    adapter: str | None = None
    expected: int | None = None
    parts: tuple[str, ...] = ()


_LLAVA_REPOSITORY = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"
_COCO_ZIP = "http://images.cocodataset.org/zips/train2017.zip"
_COCO_VAL_ZIP = "http://images.cocodataset.org/zips/val2017.zip"
_KARPATHY_ZIP = "https://cs.stanford.edu/people/karpathy/deepimagesent/coco.zip"
_AOKVQA_ARCHIVE = "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz"
_MIMICIT_REPOSITORY = "https://huggingface.co/datasets/pufanyi/MIMICIT"
_MINIGPT4_ZIP = "https://drive.google.com/file/d/1nJXhoEcy3KTExr17I7BXqY5Y9Lx_-n-9/view"
_OCR_VQA_FOLDER = "https://drive.google.com/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_"
_OCR_VQA_ZIP = (
    "https://huggingface.co/datasets/weizhiwang/llava_v15_instruction_images/resolve/main/ocr_vqa_images_llava_v15.zip"
)
_SPARKLES_PAGE = "https://github.com/HYPJUDY/Sparkles"
_MINIGPT4_LICENCE = "none stated (CC3M and SBU terms)"
_OCR_VQA_LICENCE = "none stated (images from Amazon)"
_SPARKLES_LICENCE = "OpenAI terms (text), CC3M terms and Visual Genome CC-BY-4.0 (images)"
_SPARKLES = (
    "SparklesDialogueCC/annotations/SparklesDialogueCC.json",
    "SparklesDialogueVG/annotations/SparklesDialogueVG.json",
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="coco",
            licence=COCO_LICENCE,
            folders=("coco/train2017/", "coco/val2017/"),
            optional=("coco/val2017/",),
            how_to_get=(
                f"download {_COCO_ZIP} (19.3 GB, md5 cced6f7f71b7629ddf16f17bbcfab6b2), unzip it inside coco/; for the "
                f"last 5,000 images of coco_caption also {_COCO_VAL_ZIP} (0.8 GB, md5 442b8da7639aecaf257c1dceb8ba8c80)"
            ),
            addresses=(_COCO_ZIP, _COCO_VAL_ZIP),
        ),
        Source(
            name="llava",
            licence="CC-BY-4.0, and the terms of OpenAI for generated text",
            files=(
                AnnotationFile(
                    "llava/detail_23k.json",
                    sha256="e6e0ab72875de62410ed0b85e619efc8ebbb2f1469a110648009d49105ac01c0",
                ),
                AnnotationFile(
                    "llava/complex_reasoning_77k.json",
                    bytes=79_619_894,
                    sha256="e7965bd54bb60fcff16fcfd2448cedfce5730a59652d15c08c012a77752548ca",
                ),
                AnnotationFile(
                    "llava/conversation_58k.json",
                    bytes=126_088_572,
                    sha256="b5593f0d7d4215fb5e2597060dd8335c72518c55cf97e8cd5edf9912a6e3e1b2",
                ),
            ),
            how_to_get=f"download the file of that name from {_LLAVA_REPOSITORY} into llava/",
            addresses=(_LLAVA_REPOSITORY,),
        ),
        Source(
            name="mimicit",
            licence="MIT, for research only",
            files=(AnnotationFile("MIMIC-IT/CGD_instructions.json", container="dict", key="data"),),
            how_to_get=(
                f"accept the agreement at {_MIMICIT_REPOSITORY} with your own account, download CGD_instructions.json "
                "there and put it into MIMIC-IT/"
            ),
            addresses=(_MIMICIT_REPOSITORY,),
        ),
        Source(
            name="coco_caption",
            licence="CC-BY-4.0",
            files=(AnnotationFile("coco_caption/dataset.json", key="images"),),
            how_to_get=f"download {_KARPATHY_ZIP} and put its dataset.json into coco_caption/",
            addresses=(_KARPATHY_ZIP,),
        ),
        Source(
            name="aokvqa",
            licence="Apache-2.0",
            files=(AnnotationFile("aokvqa/annotations/aokvqa_v1p0_train.json"),),
            how_to_get=f"download {_AOKVQA_ARCHIVE} and unpack it inside aokvqa/annotations/",
            addresses=(_AOKVQA_ARCHIVE,),
        ),
        Source(
            name="cc_sbu_align",
            licence=_MINIGPT4_LICENCE,
            files=(AnnotationFile("cc_sbu_align/filter_cap.json", key="annotations"),),
            folders=("cc_sbu_align/image/",),
            how_to_get=(
                f"download {_MINIGPT4_ZIP} and unpack it, which makes cc_sbu_align/ (the copy on the Hugging Face hub "
                "lacks nearly all images)"
            ),
            addresses=(_MINIGPT4_ZIP,),
        ),
        Source(
            name="ocr_vqa",
            licence=_OCR_VQA_LICENCE,
            files=(AnnotationFile("OCR_VQA/dataset.json", container="dict"),),
            folders=("OCR_VQA/images/",),
            how_to_get=(
                f"put dataset.json from {_OCR_VQA_FOLDER} into OCR_VQA/, and the images into OCR_VQA/images/: fetched by "
                f"loadDataset.py beside it, or from {_OCR_VQA_ZIP} (8.97 GB, sha256 "
                "3759c8aa0f17cab162e22fc5c3ac77f3a4d5e342974c4ad4cc316b2308a0094a)"
            ),
            addresses=(_OCR_VQA_FOLDER, _OCR_VQA_ZIP),
        ),
        Source(
            name="sparkles",
            licence=_SPARKLES_LICENCE,
            files=tuple(map(AnnotationFile, _SPARKLES)),
            folders=("SparklesDialogueCC/images/", "SparklesDialogueVG/images/"),
            how_to_get=(
                f"follow the link to OneDrive at {_SPARKLES_PAGE}, download SparklesDialogueCC.zip and "
                "SparklesDialogueVG.zip and unpack both"
            ),
            addresses=(_SPARKLES_PAGE,),
        ),
    )
}

_LLAVA = ("llava/detail_23k.json", "llava/complex_reasoning_77k.json")
_LLAVA_LICENCE = f"CC-BY-4.0 and OpenAI terms (text), {COCO_LICENCE}"

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="aokvqa",
            licence=f"Apache-2.0 (text), {COCO_LICENCE}",
            files=("aokvqa/annotations/aokvqa_v1p0_train.json",),
            image_sources=("coco",),
            adapter="aokvqa",
            expected=17_056,
        ),
        Dataset(
            name="coco_caption",
            licence=COCO_LICENCE,
            files=("coco_caption/dataset.json",),
            image_sources=("coco",),
            adapter="coco_caption",
            expected=123_287,
        ),
        Dataset(name="llava", licence=_LLAVA_LICENCE, files=_LLAVA, image_sources=("coco",), adapter="llava"),
        Dataset(
            name="llava_dial",
            licence=_LLAVA_LICENCE,
            files=("llava/conversation_58k.json",),
            image_sources=("coco",),
            adapter="llava_dial",
        ),
        Dataset(
            name="llava_otter_blend",
            licence=f"MIT for research only, CC-BY-4.0 and OpenAI terms (text), {COCO_LICENCE}",
            parts=("llava", "llava_dial", "otter_mimicit_cgd"),
        ),
        Dataset(
            name="minigpt4",
            licence=_MINIGPT4_LICENCE,
            files=("cc_sbu_align/filter_cap.json",),
            image_sources=("cc_sbu_align",),
            adapter="minigpt4",
            expected=3_439,
        ),
        Dataset(
            name="ocr_vqa",
            licence=_OCR_VQA_LICENCE,
            files=("OCR_VQA/dataset.json",),
            image_sources=("ocr_vqa",),
            adapter="ocr_vqa",
            expected=207_572,
        ),
        Dataset(
            name="otter_mimicit_cgd",
            licence=f"MIT, for research only (text), {COCO_LICENCE}",
            files=("MIMIC-IT/CGD_instructions.json",),
            image_sources=("coco",),
            adapter="otter_mimicit_cgd",
            expected=141_869,
        ),
        Dataset(name="otter_mimicit_sd", licence="MIT, for research only", expected=15_989),
        Dataset(name="otter_mimicit_sn", licence="MIT, for research only; ScanNet terms"),
        Dataset(name="otter_mimicit_tvc", licence="MIT, for research only; TVQA terms"),
        Dataset(name="otter_mimicit_vst", licence="MIT, for research only; VIST and Flickr terms"),
        Dataset(
            name="sparkles_dialogue",
            licence=_SPARKLES_LICENCE,
            files=_SPARKLES,
            image_sources=("sparkles",),
            adapter="sparkles_dialogue",
            expected=6_521,
        ),
    )
}


def parts_of(dataset: str) -> list[str]:
    """The datasets whose records `dataset` is made of: itself, or those that it joins."""
    return list(DATASETS[dataset].parts) or [dataset]


def users_of(source: str, path: str) -> list[str]:
    """The datasets that need `path`, a file or folder of `source`, whether they are configured or not."""
    return [name for name in DATASETS if path in requirements(source, [name])]


def annotation_sources(dataset: str) -> list[str]:
    """Sources of the annotation files of `dataset`."""
    files = {file for part in parts_of(dataset) for file in DATASETS[part].files}
    return [source.name for source in SOURCES.values() if files & {file.path for file in source.files}]


def image_sources(dataset: str) -> list[str]:
    """Sources of the images of `dataset`."""
    return sorted({source for part in parts_of(dataset) for source in DATASETS[part].image_sources})


def sources_of(dataset: str) -> list[str]:
    """All sources that `dataset` needs."""
    return sorted({*annotation_sources(dataset), *image_sources(dataset)})


def requirements(source: str, datasets: Iterable[str]) -> list[str]:
    """What of `source` must be below the data path so that `datasets` can be built; folders end in "/"."""
    parts = [DATASETS[part] for dataset in datasets for part in parts_of(dataset)]
    files = {file for part in parts for file in part.files}
    needed = [file.path for file in SOURCES[source].files if file.path in files]
    return needed + list(SOURCES[source].folders) * any(source in part.image_sources for part in parts)
