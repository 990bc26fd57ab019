"""Students learn what their teachers predict: gradients against torch, then whole runs."""

import json
from unittest import mock

import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from commands import command
from joint import BURNED, SAILED, annotations, build
from spacy.tokens import DocBin
from spacy.training import Example
from thinc.api import Config
from transformers import AutoModel

from spacy_bert_heads.distill import Texts, distill
from spacy_bert_heads.encoder.adapters import make_settings
from spacy_bert_heads.encoder.component import BertEncoder
from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.encoder.model import DocSample, checkpoint_of, shim_of

TEXTS = [
    {
        "text": SAILED,
        "questions": ["Who left?", "When?"],
        "hypotheses": ["She left.", "It rained."],
    },
    {"text": BURNED, "questions": ["Where?"], "hypotheses": ["It burned."]},
    {"text": 3},
    {"text": f"{BURNED} {SAILED}"},
]


def write_texts(folder):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return path


def student_config(teacher, texts, dev, steps: int = 60) -> Config:
    """The teacher's own config, to be trained on texts."""
    nlp = spacy.load(teacher)
    config = nlp.config.copy()
    config["components"]["bert_encoder"]["model"]["name"] = f"{teacher}/bert_encoder/model"
    config["paths"] |= {"train": str(texts), "dev": str(dev)}
    config["corpora"]["dev"] = {"@readers": "spacy_bert_heads.Corpus.v1", "path": "${paths.dev}"}
    config["training"] |= {
        "max_steps": steps,
        "eval_frequency": steps,
        "seed": 0,
        "optimizer": {"@optimizers": "Adam.v1", "learn_rate": 3e-3},
        "batcher": {
            "@batchers": "spacy.batch_by_sequence.v1",
            "size": 8,
            "get_length": None,
        },
    }
    return config


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    nlp = spacy.blank("xx")
    doc = nlp(SAILED)
    doc.cats = {"voyage": 1.0, "fire": 0.0}
    path = tmp_path_factory.mktemp("dev") / "dev.spacy"
    DocBin(docs=[doc], store_user_data=True).to_disk(path)
    return path


def test_layers_that_are_kept(tmp_path):
    folder = make_checkpoint(tmp_path / "deep", num_hidden_layers=4)
    checkpoint = load_checkpoint(folder)
    checkpoint.keep_layers([0, 3])
    whole = AutoModel.from_pretrained(folder).eval()
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    with torch.no_grad():
        hidden = whole.embeddings(input_ids=ids)
        for number in (0, 3):
            output = whole.encoder.layer[number](hidden)
            hidden = output[0] if isinstance(output, tuple) else output
        found = checkpoint.model.eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, hidden)
    checkpoint.model.save_pretrained(tmp_path / "saved")
    saved = AutoModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(saved(input_ids=ids).last_hidden_state, hidden)
    for numbers in ([0, 2], [1, 1], []):
        with pytest.raises(ValueError, match="can't be kept: this 'bert' checkpoint has 2 layers"):
            checkpoint.keep_layers(numbers)
    checkpoint.add_adapter(make_settings("pfeiffer", 8, 1))
    with pytest.raises(ValueError, match="an adapter begins above frozen ones"):
        checkpoint.keep_layers([0])


def test_the_loss_is_the_divergence_from_the_teacher(joint, checkpoint):
    teacher, nlp = spacy.load(joint), build(checkpoint, ["textcat"])
    head, encoder = nlp.get_pipe("bert_textcat"), nlp.get_pipe("bert_encoder")
    known, above = teacher.get_pipe("bert_textcat"), teacher.get_pipe("bert_encoder")
    for label in known.labels:
        head.add_label(label)
    torch.manual_seed(3)
    nlp.initialize()
    docs = [nlp.make_doc(SAILED), nlp.make_doc(BURNED)]
    (made, wanted) = (one.predict(docs).softmax(-1) for one in (head, known))
    expected = float((wanted * (wanted / made).log()).sum(-1).mean())
    states = encoder.predict(docs).states.clone().requires_grad_()
    ((states - above.predict(docs).states).square().mean() / 2).backward()
    encoder.follow(above)
    found = encoder.imitation_gradient(docs, encoder.predict(docs))
    torch.testing.assert_close(found, states.grad)
    encoder._teacher = None
    losses: dict[str, float] = {}
    norms = []
    for follows in (False, True):
        head.follow(known)
        if follows:
            encoder.follow(above)
        nlp.update([Example(doc, doc.copy()) for doc in docs], sgd=False, losses=losses)
        assert losses["bert_textcat"] == pytest.approx(expected, rel=1e-4)
        norms.append(losses["bert_encoder"])
        losses = {}
    assert norms[0] != pytest.approx(norms[1])


def test_long_texts_are_read_in_the_same_windows(checkpoint):
    """An update reads at most 16 windows of a Doc, drawn at random."""
    pipelines = []
    for seed in (0, 1):
        nlp = spacy.blank("xx")
        settings = {"name": checkpoint, "window": 16, "stride": 12}
        nlp.add_pipe("bert_encoder", config={"model": settings})
        head = nlp.add_pipe("bert_textcat")
        head.add_label("A"), head.add_label("B")
        torch.manual_seed(seed)
        nlp.initialize()
        pipelines.append(nlp)
    teacher, nlp = pipelines
    for name in nlp.pipe_names:
        nlp.get_pipe(name).follow(teacher.get_pipe(name))
    docs = [nlp.make_doc(f"{SAILED} " * 60), nlp.make_doc(BURNED)]
    losses = nlp.update([Example(doc, doc.copy()) for doc in docs], sgd=False)
    assert losses["bert_textcat"] > 0
    # The encoder is the teacher's, so its hidden states are no reason to change.
    sample = DocSample(docs, 16)
    encoder = nlp.get_pipe("bert_encoder")
    hidden = encoder.predict(sample)
    assert not encoder.imitation_gradient(sample, hidden).any()
    assert (hidden.batch.num_windows <= 16).all()


@pytest.fixture(scope="module")
def student(joint, dev, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    config = student_config(joint, write_texts(folder), dev)
    with pytest.warns(UserWarning, match=r"Left out of .*texts.jsonl: 1 x no text under 'text'"):
        distill(joint, config, folder / "out", keep_layers=[0])
    return folder


def test_a_student_of_all_heads(joint, student):
    nlp, teacher = spacy.load(student / "out" / "model-last"), spacy.load(joint)
    assert checkpoint_of(nlp.get_pipe("bert_encoder").model).num_layers == 1
    for row in TEXTS:
        if row["text"] == 3:
            continue
        found = []
        for pipeline in (nlp, teacher):
            doc = pipeline.make_doc(row["text"])
            doc._.questions, doc._.hypotheses = row.get("questions", []), row.get("hypotheses", [])
            found.append(annotations(pipeline(doc)))
        own, known = found
        assert own["ents"] == known["ents"]
        assert own["cats"] == pytest.approx(known["cats"], abs=0.01)
        assert [one["label"] for one in own["nli"]] == [one["label"] for one in known["nli"]]
        assert [one["text"] for one in own["answers"]] == [one["text"] for one in known["answers"]]


def test_texts_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    write_texts(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    for path in ("texts", "texts/texts.jsonl", "texts/*.jsonl"):
        with pytest.warns(UserWarning, match="Left out"):
            assert len(list(Texts(path)(spacy.blank("xx")))) == 3


def test_a_resumed_student_keeps_its_layers(joint, dev, student):
    config = student_config(joint, student / "texts.jsonl", dev)
    before = spacy.load(student / "out" / "model-last").get_pipe("bert_encoder").to_bytes()
    nlp = distill(joint, config, student / "out", keep_layers=[0], resume=True)
    assert nlp.get_pipe("bert_encoder").to_bytes() == before


def test_only_the_same_distillation_is_resumed(joint, dev, student, tmp_path):
    nlp = spacy.load(joint)
    with torch.no_grad():
        shim_of(nlp.get_pipe("bert_ner").model).module.classifier.weight *= 2
    nlp.to_disk(tmp_path / "other")
    for teacher, kept, name in ((joint, [1], "keep_layers"), (tmp_path / "other", [0], "teacher")):
        config = student_config(joint, student / "texts.jsonl", dev)
        with pytest.raises(ValueError, match=f"The run began with distillation.{name} = "):
            distill(teacher, config, student / "out", keep_layers=kept, resume=True)


def test_a_student_is_calibrated_as_its_teacher(joint, dev, tmp_path):
    teacher = spacy.load(joint)
    given = {"temperature": 3.0, "thresholds": {"voyage": 0.9}}
    teacher.get_pipe("bert_textcat").cfg |= given
    teacher.get_pipe("bert_ner").cfg["threshold"] = 0.2
    teacher.get_pipe("bert_qa").cfg["no_answer_threshold"] = 0.7
    teacher.to_disk(tmp_path / "teacher")
    config = student_config(tmp_path / "teacher", write_texts(tmp_path), dev, steps=1)
    config["components"]["bert_ner"]["threshold"] = 0.4
    config["training"]["train_corpus"] = "corpora.mine"
    distill(tmp_path / "teacher", config, tmp_path / "out")
    nlp = spacy.load(tmp_path / "out" / "model-last")
    cfg = {name: nlp.get_pipe(f"bert_{name}").cfg for name in ("textcat", "ner", "qa")}
    assert cfg["textcat"] == cfg["textcat"] | given
    assert cfg["ner"]["threshold"] == 0.4  # of the student's config
    assert cfg["qa"]["no_answer_threshold"] == pytest.approx(0.7)


def test_a_student_learns_on_from_gold(joint, dev, tmp_path):
    nlp = distill(joint, student_config(joint, write_texts(tmp_path), dev, steps=1), tmp_path / "o")
    losses = []
    for cats in ({"voyage": 1.0, "fire": 0.0}, {"voyage": 0.0, "fire": 1.0}):
        example = Example.from_dict(nlp.make_doc(SAILED), {"cats": cats})
        losses.append(nlp.update([example], sgd=False)["bert_textcat"])
    assert losses[0] < 0.5 < losses[1]


def test_hidden_states_of_two_encoders_are_not_learned_at_once(joint, dev, tmp_path):
    teacher = spacy.load(joint)
    teacher.replace_listeners("bert_encoder", "bert_textcat", ["model.tok2vec"])
    teacher.to_disk(tmp_path / "teacher")
    config = student_config(joint, write_texts(tmp_path), dev, steps=1)
    with mock.patch.object(BertEncoder, "follow") as follow:
        distill(tmp_path / "teacher", config, tmp_path / "out")
    assert follow.call_args_list == [mock.call(None)]


def test_a_student_without_bert(joint, dev, tmp_path):
    config = student_config(joint, write_texts(tmp_path), dev, steps=200)
    del config["components"]["bert_encoder"]
    cnn = {"@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": None, "width": 32}
    cnn |= {"depth": 2, "embed_size": 200, "window_size": 1, "maxout_pieces": 2}
    cnn |= {"subword_features": True}
    config["components"]["tok2vec"] = {"factory": "tok2vec", "model": cnn}
    for name in ("bert_nli", "bert_qa"):
        del config["components"][name]
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 32, "upstream": "*"}
    for name in ("bert_ner", "bert_textcat"):
        config["components"][name]["model"]["tok2vec"] = listener
    config["components"]["bert_textcat"]["model"]["pooling"] = "mean"
    config["nlp"]["pipeline"] = ["tok2vec", "bert_ner", "bert_textcat"]
    nlp, teacher = distill(joint, config, tmp_path / "out"), spacy.load(joint)
    own, known = (annotations(pipeline(SAILED)) for pipeline in (nlp, teacher))
    assert own["ents"] == known["ents"]
    assert own["cats"] == pytest.approx(known["cats"], abs=0.05)


def test_other_windows_than_the_teachers(joint, dev, tmp_path):
    config = student_config(joint, write_texts(tmp_path), dev, steps=1)
    config["components"]["bert_encoder"]["model"]["stride"] = 32
    for name in ("bert_nli", "bert_qa"):
        del config["components"][name]
    config["nlp"]["pipeline"] = list(config["components"])
    teacher = spacy.load(joint).get_pipe("bert_encoder").model.attrs
    advice = f"Set window = {teacher['window']} and stride = {teacher['stride']} in "
    with pytest.warns(UserWarning, match=f"other windows. {advice}"):
        distill(joint, config, tmp_path / "out")


def test_what_does_not_go_together(joint, dev, tmp_path):
    texts = write_texts(tmp_path)

    def run(change) -> str:
        config = student_config(joint, texts, dev)
        change(config["components"])
        config["nlp"]["pipeline"] = list(config["components"])
        with pytest.raises(ValueError) as caught:
            distill(joint, config, tmp_path / "out")
        return str(caught.value)

    def rename(components):
        components["other"] = components.pop("bert_ner")

    assert "heads bert_textcat, bert_nli, bert_qa, other, the teacher bert_ner" in run(rename)
    said = run(lambda components: components["bert_ner"].update(scheme="BILOU"))
    assert said.startswith("'bert_ner' of the student (bert_ner: O, B-DATE, I-DATE, L-DATE")
    said = run(lambda components: components["bert_encoder"]["model"].update(stride=32))
    assert "'bert_nli' reads pairs" in said and "bert_encoder/model" in said
    said = run(lambda components: components["bert_ner"].update(loss="crf"))
    assert said.startswith(
        '\'bert_ner\' of the teacher has loss = "softmax", the student\'s "crf".'
    )
    config = student_config(joint, texts, dev)
    config["components"]["bert_ner"]["model"]["tok2vec"] |= {"layers": "all"}
    with pytest.raises(ValueError, match=r"'bert_ner' reads all layers.* Set layers = \[-1\] in"):
        distill(joint, config, tmp_path / "out", keep_layers=[0])


def test_command(joint, dev, tmp_path):
    student_config(joint, write_texts(tmp_path), dev, steps=1).to_disk(tmp_path / "config.cfg")
    words = ("bert", "distill", joint, tmp_path / "config.cfg", tmp_path / "out", "--keep-layers")
    said = command(*words, "0,9", code=1)
    assert "Error: Layers 0, 9 can't be kept: this 'bert' checkpoint has 2" in said
    said = command(*words, "first", code=1)
    assert "Error: --keep-layers is 'first'. Pass layer numbers" in said
    command(*words, "1", "--training.max_steps", "2")
    nlp = spacy.load(tmp_path / "out" / "model-last")
    assert checkpoint_of(nlp.get_pipe("bert_encoder").model).num_layers == 1
