"""Convert data files to spaCy's `.spacy` format.

    files ──▶ records ──▶ Docs ──▶ on disk, until all categories are known ──▶ output + report

`formats.py` has the readers; this module creates and writes the Docs.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import spacy
from spacy.tokens import Doc, DocBin
from spacy.vocab import Vocab

from ..files import check_folder, check_parents, mark_folder, naming, read_mark
from ..heads.find import register_extensions
from ..heads.nli import BertNLI
from ..heads.similarity import BertSimilarity
from ..text.user_data import get_list
from .annotations import Made, make_doc
from .files import File, list_files
from .formats import READERS, UNITS, find_format
from .records import Options, Record, Rejected, Settings, attempt
from .report import ConversionReport, check_annotated, check_categories
from .split import Member, read_shares, split_members

SECOND_TEXTS = (BertNLI.input_name, BertSimilarity.input_name)
OURS = re.compile(r"shard-\d+\.spacy|(train|dev|test)\.spacy")


def convert(
    source: Path,
    output: Path,
    *,
    format: str | None = None,
    lang: str = "en",
    max_docs: int = 10_000,
    split: str | None = None,
    seed: int = 0,
    force: bool = False,
    known_categories: Sequence[Collection[str]] = (),
    **options: Any,
) -> ConversionReport:
    """Convert a file, or all files of a folder, to spaCy's binary format.

    Hidden and `.spacy` files of a source folder are skipped. If the output ends in `.spacy`, it is
    one file, otherwise a folder of shards with at most `max_docs` Docs; only one shard is in memory
    at a time. With `split`, such as "0.8,0.1,0.1", the folder has train.spacy, dev.spacy and
    test.spacy. The output is written after everything has been read. It replaces the output of an
    earlier conversion; other files in the folder are kept. With `force`, a folder that was not
    created by a conversion is accepted, and files with the names of new ones are replaced.

    `format` is one of `READERS`, or None to detect it for each file. `lang` is the language of the
    tokenizer, for formats with texts instead of tokens. `options` are those of `Options`.

    A text with a list of its categories does not have the others. These are all that other texts of
    the source have, in any file, and those of `known_categories` and of the option `labels`: sets
    of which the source has at least one.

    Raises FileNotFoundError if the source does not exist, and ValueError if an option is invalid, a
    file can't be decompressed, all records were rejected, or no record is annotated.
    """
    source, output = Path(source), Path(output)
    files = list_files(source)
    if format is not None and format not in READERS:
        raise ValueError(f"There is no format '{format}'. Choose one of: {', '.join(READERS)}.")
    if max_docs < 1:
        raise ValueError(f"max_docs is {max_docs}. Set it to 1 or more.")
    shares = None if split is None else read_shares(split)
    one_file = output.suffix == ".spacy"
    check_parents(output)
    if output.is_dir() if one_file else output.is_file():
        raise ValueError(
            f"{output} exists. An output file must end in .spacy, an output folder must not."
        )
    if not one_file and output.suffix[1:].isalpha() and not output.exists():
        raise ValueError(
            f"{output} would be a folder. Choose a file that ends in .spacy, or a folder name "
            f"without '{output.suffix}'."
        )
    if one_file and shares is not None:
        raise ValueError(
            f"--split writes several files, but the output is {output}. Pass a folder."
        )
    if not one_file:
        check_folder(output, "convert", force=force)
    register_extensions()
    settings, report = Settings(spacy.blank(lang)), ConversionReport()
    user_options = Options(**options)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Next to the output, because a rename is atomic only within one file system.
    with TemporaryDirectory(prefix=".convert-", dir=output.parent) as folder:
        spool = Spool(Path(folder), None if one_file else max_docs)
        for made, group in read_files(files, settings, user_options, format, report):
            spool.add(made, group)
        if not report.kept:
            fault = report.samples[0] if report.samples else "there are no records"
            raise ValueError(
                f"Nothing in {source} could be read: 0 of {report.read:,} {report.unit} "
                f"({report.format or 'unknown format'}). The first: {fault}. If this is another "
                f"format, set --format to one of: {', '.join(READERS)}."
            )
        check_annotated(report, str(source), lang=lang)
        separator = user_options.label_separator
        check_categories(settings.labels, report.docs, separator=separator)
        labels = settings.labels
        known = (own for own in (user_options.labels, *known_categories) if labels & {*own})
        spool.complete(labels.union(*known))
        if shares is not None:
            report.parts = spool.split(shares, seed=seed)
        if one_file:
            spool.shards[0].replace(output)
        else:
            replace_shards(output, spool.shards, force=force)
    return report


def read_files(
    files: list[File],
    settings: Settings,
    options: Options,
    format: str | None,
    report: ConversionReport,
) -> Iterator[tuple[Made, str | None]]:
    """Yield the Docs of all files, each with its group, and add every record to the report."""
    formats = [format or find_format(file, options) for file in files]
    if len(set(formats) - {None}) > 1 and format is None:
        # In a folder with other formats, a file that looks like labelled lines is not data.
        formats = [None if name == "labelled" else name for name in formats]
    known = list(dict.fromkeys(name for name in formats if name is not None))
    units = {UNITS.get(name, "records") for name in known}
    report.format = ", ".join(known)
    report.unit = units.pop() if len(units) == 1 else "records"
    for file, name in zip(files, formats, strict=True):
        path = str(file.path)
        if name is None:
            report.add_rejected(path, Rejected("", "empty file or unknown format"))
            continue
        for record in READERS[name](file, options):
            made: Made | Rejected
            if isinstance(record, Rejected):
                made = record
            else:
                made = attempt(record.where, make_doc, record, settings)
                if isinstance(made, Rejected):
                    made = made._replace(size=record.size)
            if isinstance(made, Rejected):
                report.add_rejected(path, made)
            elif isinstance(record, Record):
                report.add_kept(path, record, made)
                yield made, None if record.group is None else f"{path}#{record.group}"
    report.notes = settings.notes


class Spool:
    """Keep Docs on disk, in shards of at most `max_docs` (None for one shard), until all have been
    read, because only then all categories are known."""

    def __init__(self, folder: Path, max_docs: int | None) -> None:
        self.folder, self.max_docs = folder, max_docs
        self.shards: list[Path] = []
        self.members: list[Member] = []
        self.others_negative: list[list[bool]] = []  # of each shard
        self._docs = DocBin(store_user_data=True)  # has the pairs
        self._flags: list[bool] = []

    def add(self, made: Made, group: str | None) -> None:
        """Add a Doc; a full shard is written to disk."""
        self._docs.add(made.doc)
        self._flags.append(made.others_negative)
        held = [label for label, value in made.doc.cats.items() if value > 0.5]
        keys = [digest(made.doc.text), *pair_keys(made.doc), *([group] if group else [])]
        self.members.append(Member(tuple(keys), held[0] if len(held) == 1 else None))
        if len(self._flags) == self.max_docs:
            self._flush()

    def _flush(self) -> None:
        self.others_negative.append(self._flags)
        self._write(self._docs, f"shard-{len(self.shards) + 1:05}.spacy")
        self._docs, self._flags = DocBin(store_user_data=True), []

    def _write(self, docs: DocBin, name: str) -> None:
        self.shards.append(self.folder / name)
        with naming(self.folder.parent):
            docs.to_disk(self.shards[-1])

    def complete(self, labels: set[str]) -> None:
        """Write the last shard, and set the negative categories of all Docs."""
        if self._flags:
            self._flush()
        negative = dict.fromkeys(sorted(labels), 0.0)
        for shard, flags in zip(self.shards, self.others_negative, strict=True):
            if any(flags):
                docs = DocBin(store_user_data=True).from_disk(shard)
                docs.cats = [
                    negative | cats if flag else cats
                    for cats, flag in zip(docs.cats, flags, strict=True)
                ]
                with naming(self.folder.parent):
                    docs.to_disk(shard)

    def split(self, shares: dict[str, float], *, seed: int) -> dict[str, int]:
        """Replace the shards with one file per part, and return the number of Docs of each part."""
        part_of_each = split_members(self.members, shares, seed=seed)
        parts = {part: DocBin(store_user_data=True) for part in shares}
        names, vocab = iter(part_of_each), Vocab()
        for shard in self.shards:
            for doc in DocBin(store_user_data=True).from_disk(shard).get_docs(vocab):
                parts[next(names)].add(doc)
        self.shards = []
        for part, docs in parts.items():
            self._write(docs, f"{part}.spacy")
        counts = Counter(part_of_each)
        return {part: counts[part] for part in shares}


def pair_keys(doc: Doc) -> list[bytes]:
    """Return a key for each pair of texts, the same for both orders."""
    seconds = (second for name in SECOND_TEXTS for second in get_list(name, doc))
    return [digest("\0".join(sorted((doc.text, second)))) for second in seconds]


def digest(text: str) -> bytes:
    return blake2b(text.encode("utf8"), digest_size=12).digest()


def replace_shards(output: Path, shards: list[Path], *, force: bool) -> None:
    """Move shards to the output folder, where they replace those of an earlier conversion.

    Only files that are listed in the folder's marker file are deleted. Raises ValueError if another
    file has the name of a shard, unless `force` is set.
    """
    names = [shard.name for shard in shards]
    listed = read_mark(output).get("shards", ())
    stale = {name for name in listed if isinstance(name, str) and OURS.fullmatch(name)}
    foreign = next((name for name in names if name not in stale and (output / name).exists()), None)
    if foreign is not None and not force:
        raise ValueError(
            f"{output / foreign} was not made by `bert convert`. Move it, or add "
            "--force to replace it."
        )
    mark_folder(output, "convert", shards=sorted(stale | set(names)))  # in case of an interrupt
    for name in stale:
        (output / name).unlink(missing_ok=True)
    for shard in shards:
        shard.replace(output / shard.name)
    mark_folder(output, "convert", shards=names)
