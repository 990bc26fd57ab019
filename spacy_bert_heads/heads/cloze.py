"""Text classification by a cloze test: which label's word fits best where a pattern has a mask
(PET; Schick & Schütze 2021, "Exploiting Cloze Questions", section 3.1).

    pattern   {text} It was {mask}.
    read      [CLS] a window of the Doc it was [MASK] . [SEP]
    words     positive: great, negative: terrible

The checkpoint's own head for masked words gives the logits, so there are probabilities before any
training. Of its vocabulary only the labels' words are kept: the softmax is over those alone, and
so is the loss. They are copied from the embeddings, which they are not tied to any more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from spacy.tokens import Doc
from thinc.api import Model

from ..encoder.checkpoint import Checkpoint
from ..encoder.hidden_states import HiddenStates
from ..encoder.listener import checkpoint_behind, encoder_model_behind, reads_last_layer
from ..encoder.loading import load_model
from ..encoder.model import PackedPairs, checkpoint_of, shim_of
from ..encoder.shim import TorchShim
from ..text.arrays import Ints1d
from ..text.packing import pack_docs
from ..text.unknown import id_of_unknown
from ..text.wordpieces import WordpieceTokenizer
from .families import layer_names, masked_word_activation
from .free_text import parse
from .layers import MAX_WINDOWS, check_max_windows, sequence_output
from .model import forward as forward_states
from .model import head_from_files, head_model, head_to_files
from .modules import ClozeClassifier

if TYPE_CHECKING:
    from .textcat import BertTextCat

TEXT, MASK = "{text}", "{mask}"
PATTERN, WORDS = "pattern", "words"  # attributes of the model


def build_cloze_head(
    tok2vec: Model[PackedPairs, HiddenStates],
    *,
    pattern: str,
    words: dict[str, str] | str,
    max_windows: int | None = MAX_WINDOWS,
    learning_rate_multiplier: float = 1.0,
    nO: int | None = None,
) -> Model[list[Doc], torch.Tensor]:
    """Build a head that classifies every Doc by the word that a checkpoint expects in a pattern,
    for `bert_textcat`. It starts as the checkpoint's head for masked words, which the checkpoint
    has to have, and works without training; `spacy train` trains it further.

    tok2vec (Model[PackedPairs, HiddenStates]): A listener that reads the last layer. The Docs are
        read with the pattern, so their hidden states are not shared with other heads.
    pattern (str): A sentence with {mask} before or after {text}, which is the Doc. It is around
        every window of a long Doc, and may fill half of a window. Logits of windows are averaged.
    words (Dict[str, str]): A word for each label, one wordpiece of the vocabulary each. They name
        the labels; JSON if the format of the config would change them, see `as_setting`.
    max_windows (Optional[int]): As in `build_sequence_head`.
    learning_rate_multiplier (float): The head learns at this times the optimizer's learning rate;
        it is as pretrained as the encoder.
    nO (Optional[int]): The number of labels, known after initialization.
    RETURNS (Model[List[Doc], Tensor]): Logits (n_docs, n_labels).
    RAISES (ValueError): If the pattern or a word can't be one.
    """
    if not (isinstance(pattern, str) and pattern.count(TEXT) == pattern.count(MASK) == 1):
        raise ValueError(
            f"pattern is {pattern!r}; it must have {TEXT} once, for the Doc, and {MASK} once, for "
            f'the word of a label: "{TEXT} It was {MASK}."'
        )
    words = parse(words, "words of the ClozeHead")
    if not isinstance(words, dict) or not all(
        isinstance(word, str) and word and word == word.strip() for word in words.values()
    ):
        raise ValueError(
            f"words is {words!r}; it must have a word for each label, without blanks around it: "
            '{"positive": "great"}.'
        )
    shim = TorchShim(
        to_files=head_to_files,
        from_files=partial(head_from_files, ClozeClassifier),
        learning_rate_multiplier=learning_rate_multiplier,
    )
    given = {PATTERN: pattern, WORDS: words, "max_windows": check_max_windows(max_windows)}
    return head_model("cloze_head", forward, init, tok2vec, shim, given, nO)


def labels_with_words(head: BertTextCat, labels: Sequence[str] | None) -> Sequence[str] | None:
    """Give the labels of a text classifier in the order of its words; as they are, if its model has
    none. Raises ValueError if others are named than there are words for."""
    words = head.model.attrs.get(WORDS)
    if words is None:
        return labels
    if head.multi_label:
        raise ValueError(
            f"{head.name} is for categories that don't exclude each other, but a ClozeHead only "
            "compares its words. Use bert_textcat, or another model."
        )
    named = {*(words if labels is None else labels), *head.labels}
    if named != words.keys():
        raise ValueError(
            f"{head.name} has the words of {', '.join(words)}, but labels are given that are "
            f"others: {', '.join(sorted(named))}. Give each label a word, in words of its model, "
            "or leave the labels out, which are those with a word."
        )
    head.cfg["labels"] = []  # what was added before may have another order
    return list(words)


def init(model: Model, X: Any = None, Y: Any = None) -> Model:
    """Make the head's module of the checkpoint's head for masked words. Raises ValueError if that
    has none, or a word is not one of its wordpieces."""
    tok2vec = model.layers[0].initialize(X=X)
    checkpoint = checkpoint_behind(tok2vec)
    if checkpoint is None or not reads_last_layer(tok2vec):
        raise ValueError(
            "A ClozeHead reads the last layer of a bert_encoder, as the checkpoint's head for "
            "masked words does. Use spacy_bert_heads.BertListener.v1 with layers = [-1]."
        )
    mask = checkpoint.tokenizer.tokenizer.id_to_token(mask_id_of(checkpoint))
    if mask in model.attrs[PATTERN]:
        raise ValueError(f"The pattern '{model.attrs[PATTERN]}' has {mask}. Write {MASK} for it.")
    ids = find_words(checkpoint.tokenizer, model.attrs[PATTERN], model.attrs[WORDS])
    masked_model = load_masked_model(checkpoint)
    names = layer_names(checkpoint.family, "fill-mask")
    linear, norm, decoder = (
        masked_model.get_submodule(names[own])
        for own in ("dense.linear", "dense.norm", "classifier")
    )
    module = ClozeClassifier(
        checkpoint.hidden_size,
        len(ids),
        pooling="mask",
        mask_id=mask_id_of(checkpoint),
        dropout=0.0,
        dense={
            "activation": masked_word_activation(checkpoint.config),
            "width_out": linear.out_features,
            "bias": linear.bias is not None,
            "norm_eps": norm.eps,
            "norm_bias": norm.bias is not None,
        },
    )
    assert module.dense is not None and module.dense.norm is not None
    module.dense.linear.load_state_dict(linear.state_dict())
    module.dense.norm.load_state_dict(norm.state_dict())
    rows = {"weight": decoder.weight[ids], "bias": torch.zeros(len(ids))}
    if decoder.bias is not None:
        rows["bias"] = decoder.bias[ids]
    module.classifier.load_state_dict(rows)
    shim_of(model).module = module
    return model


def load_masked_model(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint that an encoder began as, with its head for masked words. Raises
    ValueError if it has none, or is not known."""
    from transformers import AutoModelForMaskedLM

    names = layer_names(checkpoint.family, "fill-mask")
    name, revision = (checkpoint.origin.get(key) for key in ("name", "revision"))
    if name is None:
        raise ValueError(
            "It is not known which checkpoint the encoder began as, so its head for masked words "
            "can't be read. Train from the checkpoint: name it in the encoder's model."
        )
    if checkpoint.origin.get("updates"):
        warnings.warn(
            f"The encoder was trained further since it was read from '{name}', but its head for "
            "masked words is the one of that checkpoint. Train the ClozeHead before you use it.",
            stacklevel=2,
        )
    try:
        model, _, lacking = load_model(name, lambda config, weights: AutoModelForMaskedLM, revision)
    except (OSError, ValueError) as error:
        what = f"the head for masked words of '{name}'"
        raise ValueError(f"A ClozeHead begins as {what}, which can't be read: {error}") from error
    own = {layer.split(".")[0] for layer in names.values()}
    if any(key.split(".")[0] in own for key in lacking):
        raise ValueError(
            f"The checkpoint '{name}' has no head for masked words, which a pattern needs. Take "
            "one that has, such as bert-base-uncased, or train one on raw text: python -m spacy "
            f"bert init-config --pretrain pretrain.cfg --raw TEXTS --name {name}, then python -m "
            "spacy bert pretrain pretrain.cfg OUTPUT."
        )
    return model


def mask_id_of(checkpoint: Checkpoint) -> int:
    """Give the id of the mask. Raises ValueError if the tokenizer has none."""
    if checkpoint.mask_id is None:
        raise ValueError("The checkpoint's tokenizer has no mask token, which a pattern needs.")
    return checkpoint.mask_id


def find_words(tokenizer: WordpieceTokenizer, pattern: str, words: dict[str, str]) -> list[int]:
    """Give the wordpiece of each label's word as it is read in the pattern. Raises ValueError if a
    word is not one wordpiece, or that of another label."""
    part = next(part for part in pattern.split(TEXT) if MASK in part)
    start = part.index(MASK)
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    unusable = {id_of_unknown(tokenizer), *(i for i, token in added.items() if token.special)}
    filled = tokenizer([part.replace(MASK, word) for word in words.values()])
    found: dict[int, str] = {}
    first = 0
    for (label, word), number in zip(words.items(), filled.lengths.tolist(), strict=True):
        own = slice(first, first + number)
        ids, starts, ends = filled.ids[own], filled.starts[own], filled.ends[own]
        # A space before the word, which may be a wordpiece of its own, belongs to it.
        begin, end = len(part[:start].rstrip()), start + len(word)
        at = (starts < end) & (ends > begin)
        pieces = [tokenizer.tokenizer.id_to_token(number) for number in ids[at].tolist()]
        is_whole = (starts[at] == start).all() and (ends[at] == end).all()
        if len(pieces) != 1 or not is_whole or int(ids[at][0]) in unusable:
            raise ValueError(
                f"The word of '{label}', '{word}', must be one wordpiece of the checkpoint's "
                f"vocabulary, but in the pattern it is {len(pieces)}: {' '.join(pieces)}. Choose "
                "another word in words of the head's model."
            )
        if int(ids[at][0]) in found:
            raise ValueError(
                f"The words of '{found[int(ids[at][0])]}' and '{label}' are the same wordpiece, "
                f"{pieces[0]}. Choose another word for one of them."
            )
        found[int(ids[at][0])] = label
        first += number
    return list(found)


def ids_behind(tokenizer: WordpieceTokenizer, text: str) -> Ints1d:
    """Return the wordpieces of a text that follows another: alone, a Unigram tokenizer would begin
    "." with a space."""
    alone, found = tokenizer([text]), tokenizer(["." + text])
    is_behind = found.starts >= 1
    # If the two were joined to one wordpiece, it is another text.
    return found.ids[is_behind] if (found.ends[~is_behind] <= 1).all() else alone.ids


def pack_cloze(model: Model, docs: Sequence[Doc], *, is_train: bool = False) -> PackedPairs:
    """Pack Docs with the pattern around each of their windows. Raises ValueError if that fills more
    than half of a window."""
    encoder = encoder_model_behind(model.layers[0], docs, is_train=is_train)
    assert encoder is not None
    checkpoint, window = checkpoint_of(encoder), encoder.attrs["window"]
    tokenizer, mask = checkpoint.tokenizer, mask_id_of(checkpoint)
    # Where byte-level tokenizers make a wordpiece of the space, the Doc stands without one.
    before, after = (
        model.attrs[PATTERN].replace(MASK, tokenizer.tokenizer.id_to_token(mask)).split(TEXT)
    )
    around = tokenizer.around(tokenizer([before.rstrip()]).ids, ids_behind(tokenizer, after))
    capacity = window - around.num_special
    length = around.num_special - tokenizer.num_special
    if length > window // 2:
        raise ValueError(
            f"The pattern '{model.attrs[PATTERN]}' has {length} wordpieces and may fill half of a "
            f"window, {window // 2}. Shorten it, or set a larger window in the encoder's model."
        )
    # Windows overlap as they do without the pattern.
    overlap = min(window - tokenizer.num_special - encoder.attrs["stride"], capacity // 2)
    batch = pack_docs(docs, around, window=window, stride=capacity - overlap)
    return PackedPairs(docs, batch.sample(model.attrs["max_windows"] if is_train else None))


def forward(
    model: Model, docs: list[Doc], is_train: bool
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """Give the logits of the labels' words (n_docs, n_labels), and the callback that takes their
    gradient."""
    pairs = pack_cloze(model, docs, is_train=is_train)
    return forward_states(sequence_output, model, pairs, is_train)
