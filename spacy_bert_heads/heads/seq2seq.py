"""Texts written from texts: summaries, sentences for records, simpler wordings."""

import random
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.records import check_text
from ..encoder.checkpoint import Checkpoint
from ..encoder.listener import DEFAULT_LISTENER, checkpoint_behind
from ..encoder.model import shim_of
from ..text.arrays import Ints1d
from ..text.doc_data import register_extension
from ..text.user_data import copy_of_list, get_list, get_value, set_value
from .answers import WITHOUT_SPACES, answer_words
from .declared import Score, score_weights
from .decoder import MAX_WINDOWS, Decoder, Sources, TargetLogits
from .losses import cross_entropy, mean_over, summed_cross_entropy
from .pair_head import start_of
from .unlabelled import UnlabelledHead

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.Seq2SeqHead.v1",
    "decoder": "encoder",
    "num_layers": None,
    "max_windows": MAX_WINDOWS,
    "learning_rate_multiplier": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
SCORES = {
    "seq2seq_bleu": Score("generated, BLEU", 0.5),
    "seq2seq_rouge1": Score("generated, ROUGE-1"),
    "seq2seq_rouge2": Score("generated, ROUGE-2"),
    "seq2seq_rougeL": Score("generated, ROUGE-L", 0.5),
}
ROUGE = ("rouge1", "rouge2", "rougeL")
# Settings of GenerationConfig that the component has itself, or that generate doesn't return.
OWN_SETTINGS = {
    "num_beams": "num_beams of the component",
    "max_new_tokens": "max_length of the component",
    "max_length": "max_length of the component",
    "num_return_sequences": "the best text, which is what is written to the Doc",
    "return_dict_in_generate": "the best text, which is what is written to the Doc",
}


@Language.factory(
    "bert_seq2seq",
    assigns=["doc._.generated"],
    default_config={
        "model": DEFAULT_MODEL,
        "max_length": 64,
        "num_beams": 4,
        "generation": {},
        "label_smoothing": 0.0,
        "scorer": {"@scorers": "spacy_bert_heads.seq2seq_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_seq2seq(
    nlp: Language,
    name: str,
    model: Model[Any, Any],
    max_length: int,
    num_beams: int,
    generation: dict[str, Any],
    label_smoothing: float,
    scorer: Callable | None,
) -> "BertSeq2Seq":
    """Create a component that writes a text for every Doc to `doc._.generated`, and learns from
    those of `doc._.targets`.

    `max_length` is the length of the longest text in wordpieces, its end included; longer targets
    are cut. `num_beams` is the width of the beam search, 1 for greedy search. `generation` are
    other settings of transformers' GenerationConfig, such as {"length_penalty": 0.8,
    "no_repeat_ngram_size": 3, "min_new_tokens": 5, "bad_words_ids": [[1234]]}. `label_smoothing` is
    the share of the target distribution that is spread over the vocabulary (Szegedy et al. 2016,
    section 7).
    """
    return BertSeq2Seq(
        nlp.vocab,
        model,
        name,
        max_length=max_length,
        num_beams=num_beams,
        generation=generation,
        label_smoothing=label_smoothing,
        scorer=scorer,
    )


def make_seq2seq_scorer() -> Callable:
    return score_seq2seq


def score_seq2seq(
    examples: Iterable[Example], *, lowercase: bool = False, **kwargs: Any
) -> dict[str, Any]:
    """Compute corpus BLEU (sacrebleu) and the mean F1 of ROUGE-1, -2 and -L (rouge-score; of
    several references the best one), all from 0 to 1. With `lowercase` case doesn't count.

    English texts are split as these packages do by default, and stemmed for ROUGE. Other languages
    are split into words for ROUGE, Chinese, Japanese and Thai into characters for both. Raises
    ImportError if one of the two packages is missing.
    """
    require_scorers()
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    examples = list(examples)
    if not examples:
        return dict.fromkeys(SCORES)
    pairs = [(eg.predicted._.generated or "", targets_of(eg.reference)) for eg in examples]
    lang = examples[0].reference.lang_
    texts, references = map(list, zip(*pairs, strict=True))
    most = max(map(len, references))
    columns: Any = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    split = "zh" if lang == "zh" else "char" if lang in WITHOUT_SPACES else None
    bleu = BLEU(lowercase=lowercase, tokenize=split).corpus_score(texts, columns)
    # Its own tokenizer, which drops all letters but a to z, is for English.
    words = None if lang == "en" else Words(lang)
    scorer = RougeScorer(list(ROUGE), use_stemmer=True, tokenizer=words)  # ignores case
    rouge = [scorer.score_multi(own, text) for text, own in pairs]
    means = {f"seq2seq_{name}": np.mean([row[name].fmeasure for row in rouge]) for name in ROUGE}
    return {"seq2seq_bleu": bleu.score / 100, **{key: float(v) for key, v in means.items()}}


class Words(NamedTuple):
    """Split texts for ROUGE, in lower case and without punctuation."""

    lang: str

    def tokenize(self, text: str) -> list[str]:
        """List the words, or the characters of languages without spaces."""
        if self.lang in WITHOUT_SPACES:
            return answer_words(text, self.lang)
        kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in text.lower())
        return "".join(kept).split()


def require_scorers() -> None:
    """Raise ImportError, with what to install, if a package that scores texts is missing."""
    missing = [name for name in ("sacrebleu", "rouge_score") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Texts are scored by sacrebleu and rouge-score, but {' and '.join(missing)} can't be "
            "found. Run: pip install 'spacy_bert_heads[seq2seq]'; or set scorer = null in "
            "[components.bert_seq2seq]."
        )


def targets_of(doc: Doc) -> list[str]:
    """Return the texts that may be written for a Doc, [] if it is not annotated. Raises ValueError
    if they are no texts."""
    targets = copy_of_list("targets", doc)
    if not isinstance(targets, list) or not all(isinstance(one, str) and one for one in targets):
        raise ValueError(
            f"doc._.targets must be a list of texts, not {targets!r:.80}: {start_of(doc)}"
        )
    return targets


class BertSeq2Seq(UnlabelledHead):
    """Write a text for each Doc to `doc._.generated`.

    The settings are those of `make_bert_seq2seq`. In an update each Doc teaches one of its targets,
    drawn at random. A Doc without tokens gets an empty text. Raises ValueError if a setting makes
    no sense.
    """

    factory = "bert_seq2seq"
    scores = SCORES
    does = "writes texts"
    json_keys = ("targets", "target")
    annotation = "targets"
    hf_task = "text2text-generation"

    def __init__(
        self,
        vocab: Vocab,
        model: Model[Any, Any],
        name: str = "bert_seq2seq",
        *,
        max_length: int = 64,
        num_beams: int = 4,
        generation: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        scorer: Callable | None = score_seq2seq,
    ) -> None:
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}; it must be 2 or more.")
        if num_beams < 1:
            raise ValueError(f"num_beams is {num_beams}; it must be 1 or more.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is {label_smoothing}; it must be 0 or more, below 1."
            )
        super().__init__(vocab, model, name, scorer=scorer, label_smoothing=label_smoothing)
        self.generation = {**check_generation(name, generation or {})}
        self.generation |= {"max_new_tokens": max_length, "num_beams": num_beams}
        self.max_length = max_length
        self._warned = False

    @property
    def writes(self) -> set[str]:
        return {"doc._.generated"}

    # --- data

    @classmethod
    def set_extensions(cls) -> None:
        for name, get in (("targets", get_list), ("generated", get_value)):
            functions = {"getter": partial(get, name), "setter": partial(set_value, name)}
            register_extension(Doc, name, **functions)

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Any) -> None:
        targets = value if isinstance(value, list) else [value]
        set_value("targets", doc, [check_text("target", one) for one in targets])

    @classmethod
    def is_annotated(cls, doc: Doc) -> bool:
        return bool(copy_of_list("targets", doc))

    def has_gold(self, example: Example) -> bool:
        return bool(targets_of(example.reference))

    def data_checks(self) -> list:
        from ..checks.heads import check_targets

        return [*super().data_checks(), (check_targets, "all targets fit into max_length")]

    # --- training

    def start_from_data(self, examples: Iterable[Example]) -> None:
        self.check_length()
        if self.scorer is score_seq2seq:
            require_scorers()  # not at the first evaluation

    def begin_update(self, examples: list[Example]) -> tuple[TargetLogits, Callable]:
        """Run the decoder with a graph on one target of each example."""
        chosen = [random.choice(targets_of(eg.reference)) for eg in examples]
        docs = [eg.predicted for eg in examples]
        return self.model.begin_update(Sources(docs, self.encode(chosen)))

    def encode(self, targets: Sequence[str]) -> list[Ints1d]:
        """Tokenize targets; what is behind `max_length` wordpieces is cut off, with a warning."""
        found = self.checkpoint.tokenizer(targets)
        rows = np.split(found.ids, np.cumsum(found.lengths)[:-1])
        longest = int(found.lengths.max(initial=0))
        if longest >= self.max_length and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name} learns only the first {self.max_length - 1} wordpieces of a target, "
                f"but one has {longest}. To learn and write longer texts, set max_length = "
                f"{longest + 1} in [components.{self.name}].",
                stacklevel=2,
            )
        return [row[: self.max_length - 1] for row in rows]

    def loss(self, examples: Sequence[Example], output: TargetLogits) -> torch.Tensor:
        """Cross-entropy in nats, a mean over the wordpieces of the targets."""
        logits, targets = output
        if smoothing := self.cfg["label_smoothing"]:
            return cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        total, _ = summed_cross_entropy(logits, torch.from_numpy(targets).to(logits.device))
        return mean_over(total, len(targets))

    def follow(self, teacher: Any) -> None:
        """Raise ValueError: logits depend on the target, so there are none without annotation."""
        raise ValueError(
            f"{self.name} can't learn from a teacher's logits. Write targets with the teacher, "
            "for which nlp.pipe and doc._.generated will do, and train on these (Kim & Rush 2016)."
        )

    def unlabelled_inputs(self, docs: list[Doc]) -> None:
        return None

    def _after_loading(self) -> None:
        super()._after_loading()
        self.check_length()

    def check_length(self) -> None:
        """Raise ValueError if the decoder has no positions for the longest text."""
        if not shim_of(self.model).has_module:
            return
        longest = cast(Decoder, shim_of(self.model).module).max_length
        if self.max_length > longest:
            raise ValueError(
                f"max_length of {self.name} is {self.max_length}, but the decoder has positions "
                f"for {longest}. Set max_length = {longest} or less."
            )

    @property
    def checkpoint(self) -> Checkpoint:
        """The encoder's checkpoint, whose wordpieces are written. Raises ValueError without
        one."""
        found = checkpoint_behind(self.model.get_ref("tok2vec"))
        if found is None:
            raise ValueError(
                f"{self.name} has no encoder. Add a bert_encoder before it, and call "
                "nlp.initialize() or load a trained pipeline."
            )
        return found

    # --- predicting

    def predict(self, docs: Iterable[Doc]) -> list[str]:
        """Write a text for each Doc."""
        docs = list(docs)
        filled = [doc for doc in docs if len(doc)]
        if not filled:
            return [""] * len(docs)
        ids = self.model.predict(Sources(filled, generation=self.generation))
        decode = self.checkpoint.tokenizer.tokenizer.decode_batch
        texts = iter(decode([row.tolist() for row in ids], skip_special_tokens=True))
        return [next(texts).strip() if len(doc) else "" for doc in docs]

    def set_annotations(self, docs: Sequence[Doc], texts: Sequence[str]) -> None:
        """Write the texts."""
        for doc, text in zip(docs, texts, strict=True):
            set_value("generated", doc, text)

    def scorer_settings(self) -> dict[str, Any]:
        # What an uncased model writes has no capitals to be right or wrong.
        normalizer = self.checkpoint.tokenizer.tokenizer.normalizer
        return {"lowercase": normalizer is not None and normalizer.normalize_str("A") == "a"}


def check_generation(name: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the same. Raises ValueError if a setting is unknown, or is not for the user to set."""
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict().keys()
    for key in settings:
        if key in OWN_SETTINGS:
            raise ValueError(f"generation of {name} has {key}. That is {OWN_SETTINGS[key]}.")
        if key not in known:
            raise ValueError(
                f"generation of {name} has {key!r}, which transformers' GenerationConfig does not "
                "know."
            )
    return settings
