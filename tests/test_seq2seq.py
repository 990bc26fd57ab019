"""Texts written from texts: learned, stored, scored, converted."""

import pickle
import random
import sys

import pyarrow.parquet as pq
import pytest
import spacy
import torch
from conversion import jsonl
from seq2seq_cases import DATA, build, learn, make_examples, write
from served import serve
from spacy.cli.train import train as spacy_train
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from typer.testing import CliRunner

from spacy_bert_heads import to_hf
from spacy_bert_heads.annotate.records import Columns
from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.heads import seq2seq
from spacy_bert_heads.heads.seq2seq import BertSeq2Seq, score_seq2seq
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.serving.app import make_app

TEXTS = [text for text, _ in DATA]
TARGETS = [targets[0] for _, targets in DATA]


@pytest.fixture(scope="module")
def trained(checkpoint):
    return learn(build(checkpoint))


def test_a_few_texts_are_learned_saved_and_loaded(trained, tmp_path):
    assert write(trained, [*TEXTS, ""]) == [*TARGETS, ""]
    trained.to_disk(tmp_path / "nlp")
    for nlp in (
        spacy.load(tmp_path / "nlp"),
        pickle.loads(pickle.dumps(trained)),
        spacy.blank("en").from_config(trained.config).from_bytes(trained.to_bytes()),
    ):
        assert write(nlp, [*TEXTS, ""]) == [*TARGETS, ""]
    scores = trained.evaluate(make_examples(trained))
    for name in ("seq2seq_bleu", "seq2seq_rouge1", "seq2seq_rouge2", "seq2seq_rougeL"):
        assert scores[name] == pytest.approx(1.0)


def test_workers_and_batches(trained):
    texts = TEXTS * 3
    found = [doc._.generated for doc in trained.pipe(texts, n_process=2, batch_size=2)]
    assert found == TARGETS * 3
    assert [trained(text)._.generated for text in TEXTS] == TARGETS


def test_replaced_listeners_and_frozen_encoder(trained, checkpoint):
    nlp = pickle.loads(pickle.dumps(trained))
    nlp.replace_listeners("bert_encoder", "bert_seq2seq", ["model.tok2vec"])
    nlp.remove_pipe("bert_encoder")
    assert write(nlp, TEXTS) == TARGETS
    nlp = build(checkpoint, encoder={"frozen_layers": 2})
    assert write(learn(nlp, 100), TEXTS) == TARGETS


def test_several_windows_are_read(checkpoint):
    """What is to be written is known from the last window alone."""
    filler = "The coaster lost pitch control off Skagen. " * 6
    data = [(f"{filler} Nobody", ["nobody"]), (f"{filler} Tuesday", ["the pump"])]
    nlp = learn(build(checkpoint, data, window=32, stride=24), 60, data)
    assert write(nlp, [text for text, _ in data]) == ["nobody", "the pump"]


def test_lengths(trained):
    nlp = pickle.loads(pickle.dumps(trained))
    nlp.get_pipe("bert_seq2seq").generation["max_new_tokens"] = 2
    tokenizer = nlp.get_pipe("bert_seq2seq").checkpoint.tokenizer
    begins = [tokenizer([target]).ids[:2].tolist() for target in TARGETS]
    assert write(nlp, TEXTS) == tokenizer.tokenizer.decode_batch(begins)


def test_generation_settings_arrive(trained):
    nlp = pickle.loads(pickle.dumps(trained))
    pump = nlp.get_pipe("bert_encoder").model.shims[0].module.checkpoint.tokenizer(["pump"]).ids
    nlp.get_pipe("bert_seq2seq").generation["bad_words_ids"] = [pump.tolist()]
    found = write(nlp, TEXTS)
    assert "pump" not in found[1]
    assert found[0] == TARGETS[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_length": 1}, "max_length is 1; it must be 2 or more"),
        ({"num_beams": 0}, "num_beams is 0; it must be 1 or more"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be 0 or more, below 1"),
        ({"generation": {"num_beams": 3}}, "has num_beams. That is num_beams of the component"),
        ({"generation": {"lenght_penalty": 3}}, "'lenght_penalty', which transformers'"),
        ({"model": {"num_layers": 0}}, "num_layers is 0; it must be 1 or more, or null"),
        ({"model": {"max_windows": 0}}, "max_windows is 0; it must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        spacy.blank("en").add_pipe("bert_seq2seq", config=settings)


def test_wrong_gold_data(trained):
    gold = trained.make_doc("Anna")
    gold._.targets = "one text"
    with pytest.raises(ValueError, match="doc._.targets must be a list of texts, not 'one text'"):
        trained.update([Example(trained.make_doc("Anna"), gold)])
    head = trained.get_pipe("bert_seq2seq")
    with pytest.raises(ValueError, match="bert_seq2seq writes texts; it has no labels"):
        head.add_label("X")
    with pytest.raises(ValueError, match="can't learn from a teacher's logits"):
        head.follow(head)
    with pytest.raises(ValueError, match="was given Docs alone"):
        head.model.predict([gold])


def test_long_targets_are_cut(checkpoint):
    data = [("Anna", ["the boat left skagen"])]
    nlp = build(checkpoint, data, max_length=4)
    head = nlp.get_pipe("bert_seq2seq")
    whole = head.checkpoint.tokenizer(["the boat left skagen"]).ids.tolist()
    with pytest.warns(UserWarning, match=f"set max_length = {len(whole) + 1} in"):
        (ids,) = head.encode(["the boat left skagen"])
    assert ids.tolist() == whole[:3]


def test_texts_longer_than_the_decoder(checkpoint, folders):
    for name, positions in ((checkpoint, 128), (folders("roberta"), 128)):
        build(name, max_length=positions)
        with pytest.raises(ValueError, match=f"the decoder has positions for {positions}"):
            build(name, max_length=positions + 1)


def test_a_saved_decoder_is_loaded_with_a_longer_max_length(trained, tmp_path):
    trained.to_disk(tmp_path)
    setting = "components.bert_seq2seq.max_length"
    nlp = spacy.load(tmp_path, config={setting: 128})
    assert nlp.get_pipe("bert_seq2seq").max_length == 128
    with pytest.raises(ValueError, match="max_length of bert_seq2seq is 129, but the decoder has"):
        spacy.load(tmp_path, config={setting: 129})


def gradient_of_encoder(checkpoint, precision):
    torch.manual_seed(0)
    nlp = build(checkpoint, encoder={"precision": precision})
    encoder = nlp.get_pipe("bert_encoder")
    random.seed(0)
    nlp.update(make_examples(nlp), sgd=False)
    shim = shim_of(encoder.model)
    gradients = [p.grad.flatten() for p in shim.module.parameters() if p.grad is not None]
    return torch.cat(gradients) / shim.gradient_scale


def test_gradients_are_scaled_once_in_fp16(checkpoint):
    exact, half = (gradient_of_encoder(checkpoint, precision) for precision in ("fp32", "fp16"))
    assert float(half.norm()) == pytest.approx(float(exact.norm()), rel=0.05)


def test_an_export_leaves_the_decoder_alone(trained, tmp_path):
    to_hf(trained, "bert_seq2seq", tmp_path / "half", precision="bf16")
    weights = shim_of(trained.get_pipe("bert_seq2seq").model).module.parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_examples_without_targets_teach_nothing(checkpoint):
    nlp = build(checkpoint)
    losses = {}
    doc = nlp.make_doc("Anna")
    nlp.update([Example(doc, doc.copy())], losses=losses)
    assert losses["bert_seq2seq"] == 0.0
    assert nlp.get_pipe("bert_seq2seq").score([Example(doc, doc.copy())])["seq2seq_bleu"] is None


def test_rows_and_responses(trained, tmp_path):
    """`bert annotate` to Parquet, and `bert serve`."""
    trained.to_disk(tmp_path / "nlp")
    rows = jsonl(*({"text": text} for text in TEXTS))
    (tmp_path / "in.jsonl").write_text(rows, encoding="utf8")
    args = ["annotate", str(tmp_path / "nlp"), str(tmp_path / "in.jsonl"), str(tmp_path / "out")]
    result = CliRunner().invoke(bert_app, [*args, "--format", "parquet"])
    assert result.exit_code == 0, result.output
    (part,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_table(part)["generated"].to_pylist() == TARGETS
    with serve(make_app(trained, name="written")) as (client, _):
        found = client.annotate(TEXTS)
        assert [one["generated"] for one in found] == TARGETS


# --- scores


def make_pair(text, references):
    vocab = spacy.blank("en").vocab
    predicted, gold = Doc(vocab, words=["x"]), Doc(vocab, words=["x"])
    BertSeq2Seq.set_extensions()
    predicted._.generated, gold._.targets = text, references
    return Example(predicted, gold)


def test_scores_are_those_of_their_packages():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    pairs = [
        ("the cat sat on the mat today", ["the cat sat on a mat", "A cat was on the mat today"]),
        ("there is a dog in the house", ["There is a dog in the house"]),
    ]
    scores = score_seq2seq([make_pair(*pair) for pair in pairs], lowercase=True)
    references = [["the cat sat on a mat", "There is a dog in the house"]]
    references.append(["A cat was on the mat today", ""])
    expected = corpus_bleu([text for text, _ in pairs], references[:1] + [[references[1][0], None]],
                           lowercase=True)  # fmt: skip
    assert scores["seq2seq_bleu"] == pytest.approx(expected.score / 100)
    scorer = RougeScorer(["rouge2"], use_stemmer=True)
    best = max(scorer.score(one, pairs[0][0])["rouge2"].fmeasure for one in pairs[0][1])
    assert scores["seq2seq_rouge2"] == pytest.approx((best + 1) / 2)
    cased = score_seq2seq([make_pair(*pair) for pair in pairs])
    assert cased["seq2seq_bleu"] < scores["seq2seq_bleu"]


def test_uncased_vocabularies_are_scored_without_case(trained, folders):
    assert trained.get_pipe("bert_seq2seq").scorer_settings() == {"lowercase": True}
    nlp = build(folders("roberta"))
    assert nlp.get_pipe("bert_seq2seq").scorer_settings() == {"lowercase": False}


def test_a_missing_scorer_is_an_error_before_training(checkpoint, monkeypatch):
    monkeypatch.setattr(seq2seq, "find_spec", lambda name: None)
    message = "pip install 'spacy_bert_heads\\[seq2seq\\]'"
    with pytest.raises(ImportError, match=message):
        build(checkpoint)
    build(checkpoint, scorer=None)


# --- from files to files


def test_convert_train_evaluate_annotate(checkpoint, tmp_path):
    rows = [{"text": text, "targets": targets} for text, targets in DATA]
    rows += [{"text": "Anna", "target": "a ship"}, {"text": "Hull", "targets": [None]}]
    (tmp_path / "a.jsonl").write_text(jsonl(*rows), encoding="utf8")
    report = convert(tmp_path / "a.jsonl", tmp_path / "train.spacy")
    assert (report.kept, report.rejected) == (4, 1)
    nlp = spacy.blank("en")
    docs = list(DocBin().from_disk(tmp_path / "train.spacy").get_docs(nlp.vocab))
    assert [list(doc._.targets) for doc in docs] == [*(t for _, t in DATA), ["a ship"]]

    config = init_config(["seq2seq"], name=checkpoint)
    config["components"]["bert_encoder"]["model"] |= {"window": 64, "stride": 48}
    config["training"].update(max_steps=2, eval_frequency=1)
    config.to_disk(tmp_path / "config.cfg")
    overrides = {f"paths.{part}": str(tmp_path / "train.spacy") for part in ("train", "dev")}
    spacy_train(tmp_path / "config.cfg", tmp_path / "out", overrides=overrides)
    model = tmp_path / "out" / "model-last"
    assert 0 <= spacy.load(model).meta["performance"]["seq2seq_bleu"] <= 1

    result = CliRunner().invoke(bert_app, ["evaluate", str(model), str(tmp_path / "train.spacy")])
    assert result.exit_code == 0, result.output
    assert "generated, BLEU" in result.output
    loaded = spacy.load(model)
    doc = loaded("Anna left")
    assert Columns.of(loaded).read(doc) == {"generated": doc._.generated}


def test_debug_data(checkpoint, tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl(*({"text": t, "targets": g} for t, g in DATA)))
    convert(tmp_path / "a.jsonl", tmp_path / "a.spacy")
    config = init_config(["seq2seq"], name=checkpoint)
    config["components"]["bert_encoder"]["model"] |= {"window": 64, "stride": 48}
    config["components"]["bert_seq2seq"]["max_length"] = 4
    config["paths"] |= {"train": str(tmp_path / "a.spacy"), "dev": str(tmp_path / "a.spacy")}
    config.to_disk(tmp_path / "config.cfg")
    result = CliRunner().invoke(bert_app, ["debug-data", str(tmp_path / "config.cfg")])
    nlp = build(checkpoint)
    targets = [text for _, own in DATA for text in own]
    lengths = nlp.get_pipe("bert_seq2seq").checkpoint.tokenizer(targets).lengths + 1
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert f"{(lengths > 4).sum()} targets with more than 3 wordpieces" in output
    assert f"Set max_length = {lengths.max()} in [components.bert_seq2seq]" in output
    assert "the same labels" not in output


def test_columns_of_a_table(tmp_path):
    file = tmp_path / "a.csv"
    rows = 'name[Alimentum],Alimentum is near.\nname[Aroma],12\nname[Blue],"""Blue"""\n'
    file.write_text(f"mr,ref\n{rows}", encoding="utf8")
    options = {"text_column": "mr", "target_column": "ref"}
    report = convert(file, tmp_path / "a.spacy", **options)
    assert report.kept == 3
    docs = DocBin().from_disk(tmp_path / "a.spacy").get_docs(spacy.blank("en").vocab)
    assert [(doc.text, list(doc._.targets)) for doc in docs] == [
        ("name[Alimentum]", ["Alimentum is near."]),
        ("name[Aroma]", ["12"]),
        ("name[Blue]", ['"Blue"']),
    ]
    args = ["convert", str(file), str(tmp_path / "b.spacy"), "--text-column", "mr"]
    assert CliRunner().invoke(bert_app, [*args, "--target-column", "ref"]).exit_code == 0


def test_transformers_stays_out_of_the_way():
    """Importing the head must not import transformers, which takes seconds."""
    import subprocess

    code = "import sys, spacy_bert_heads.heads.seq2seq; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
