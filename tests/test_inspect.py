"""Views into an encoder: their figures by Hugging Face's and scikit-learn's, and that the files
show them."""

import re
import sys
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import make_examples
from matplotlib.image import imread
from sklearn.decomposition import PCA
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from spacy.tokens import DocBin
from test_cli import run
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.encoder.features import mix_of
from spacy_bert_heads.inspect_encoder import (
    Labelled,
    LayerWeights,
    MapView,
    WordView,
    compare_word,
    encode_documents,
    map_documents,
    nearest_neighbour_accuracy,
    open_source,
    pca,
    read_labelled,
    read_weights,
)
from spacy_bert_heads.pictures import in_context, save_map, save_weights, save_word

SENTENCES = [
    "The coaster lost control off Skagen.",
    "Nobody swam to the coaster, but the Coaster sank.",
]


def hidden_states(folder: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """All layers' states of one text by Hugging Face, (depth + 1, n_pieces, width), and the pieces'
    offsets (n_pieces, 2), both without special tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = tokenizer(
        text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True
    )
    offsets = inputs.pop("offset_mapping")[0].numpy()
    own = np.flatnonzero(inputs.pop("special_tokens_mask")[0].numpy() == 0)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = model.eval()(**inputs, output_hidden_states=True)
    states = torch.stack([*output.hidden_states[:-1], output.last_hidden_state])[:, 0].numpy()
    return states[:, own], offsets[own]


def vector(folder: str, text: str, start: int, end: int) -> np.ndarray:
    states, offsets = hidden_states(folder, text)
    # What starts in the word, a byte-level space of no width too; or covers where it starts.
    first, last = offsets.T
    inside = (start <= first) & (first < end) | (first < start) & (start < last)
    return states[:, inside].mean(1)  # (depth + 1, width)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


# --- one word in many sentences


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "modernbert"])
@pytest.mark.parametrize(
    "word, texts",
    [
        ("coaster", SENTENCES),
        # Of several pieces; of two tokens, the first two of which are one piece; at both ends.
        ("sandbank", ["It ran on a sandbank off Hull.", "A sandbank", "Sandbank: no."]),
        ("cannot swim", ["Anna cannot swim.", "He cannot swim, but Anna can.", "cannot swim"]),
    ],
)
def test_cosines_are_those_of_hugging_faces_states(family, word, texts, tmp_path):
    folder = make_checkpoint(tmp_path / family, family=family)
    view = compare_word(open_source(folder), word, texts)
    found = [(text, m.span()) for text in texts for m in re.finditer(word, text, re.I)]
    assert [span.text for span in view.occurrences] == [t[a:b] for t, (a, b) in found]
    vectors = [vector(folder, text, *place) for text, place in found]
    expected = np.asarray([[cosine(a, b) for b in vectors] for a in vectors]).transpose(2, 0, 1)
    assert view.cosines.shape == (3, 3, 3)
    np.testing.assert_allclose(view.cosines, expected, atol=1e-5)
    # No two occurrences are the same above the embeddings, and the layers differ.
    assert (view.cosines[1:, 0, 1] < 0.9999).all() and np.ptp(view.cosines[:, 0, 1]) > 1e-3


def test_a_word_at_the_end_of_a_long_text(checkpoint):
    filler = "the boat lost control off Skagen and Anna swam . "
    text = f"{filler * 30}The coaster sank."
    view = compare_word(open_source(checkpoint), "coaster", [text, SENTENCES[0]])
    tokenizer, model = (
        AutoTokenizer.from_pretrained(checkpoint),
        AutoModel.from_pretrained(checkpoint),
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Windows of 128, two of them special, begin at every 96th piece.
    start = 96 * -(-(len(ids) - 126) // 96)
    window = [tokenizer.cls_token_id, *ids[start : start + 126], tokenizer.sep_token_id]
    place = window.index(tokenizer.convert_tokens_to_ids("coaster"))
    assert 20 < len(window) < 128
    with torch.no_grad():
        output = model.eval()(torch.tensor([window]), output_hidden_states=True)
    states = torch.stack(output.hidden_states)[:, 0, place].numpy()
    at = SENTENCES[0].index("coaster")
    expected = cosine(states, vector(checkpoint, SENTENCES[0], at, at + 7))
    np.testing.assert_allclose(view.cosines[:, 0, 1], expected, atol=1e-5)


def test_self_similarity_is_the_mean_of_different_places():
    cosines = np.asarray([[[1, 0.2, 0.4], [0.2, 1, 0.9], [0.4, 0.9, 1]]])
    spans = [spacy.blank("en")("a b c")[i : i + 1] for i in range(3)]
    view = WordView("x", "a", spans, cosines)
    np.testing.assert_allclose(view.self_similarity, [0.5])


@pytest.mark.parametrize(
    "word, texts, message",
    [
        ("boat", [*SENTENCES, "A boat"], r"'boat' is not in the text 'The coaster .*' \(and 1 oth"),
        ("coast", SENTENCES, "'coast' is not in the text 'The coaster lost"),
        ("Skagen", SENTENCES[:1], "'Skagen' occurs 1 times in 1 texts. Give texts with 2 to 20"),
        ("a", ["a " * 21], "occurs 21 times"),
        (" ", SENTENCES, "The word is empty"),
        ("\u200b", ["a \u200b b \u200b c"], "has no wordpieces"),
    ],
)
def test_words_that_can_not_be_compared(checkpoint, word, texts, message):
    with pytest.raises(ValueError, match=message):
        compare_word(open_source(checkpoint), word, texts)


def test_a_pipelines_encoder_is_its_checkpoint(checkpoint, make_nlp, tmp_path):
    nlp = make_nlp("textcat")
    nlp.to_disk(tmp_path / "one")
    source = open_source(str(tmp_path / "one"))
    assert (source.window, source.stride, source.depth) == (64, 48, 2)
    views = [compare_word(one, "coaster", SENTENCES) for one in (source, open_source(checkpoint))]
    np.testing.assert_allclose(views[0].cosines, views[1].cosines, atol=1e-6)

    settings = {"name": checkpoint, "window": 32, "stride": 16}
    nlp.add_pipe("bert_encoder", name="second", config={"model": settings})
    nlp.get_pipe("second").initialize(lambda: [])
    nlp.to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="has these encoders: bert_encoder, second. Name one"):
        open_source(str(tmp_path / "two"))
    assert open_source(str(tmp_path / "two"), encoder="second").window == 32
    spacy.blank("en").to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="has no bert_encoder"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="is no pipeline but a checkpoint"):
        open_source(checkpoint, encoder="bert_encoder")


# --- the layers that heads read


@pytest.mark.parametrize("replaced", [False, True])
def test_weights_of_heads(checkpoint, tmp_path, replaced):
    nlp = spacy.blank("en")
    settings = {"name": checkpoint, "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    listener = {"@architectures": "spacy_bert_heads.BertListener.v1", "combine": "weighted"}
    listeners = {
        "bert_tagger": {**listener, "layers": [2, 0, -2]},
        "bert_textcat": {**listener, "layers": "all", "combine": "sum"},
        "bert_textcat_multilabel": {**listener, "layers": "all"},
    }
    for name, tok2vec in listeners.items():
        nlp.add_pipe(name, config={"model": {"tok2vec": tok2vec}})
    nlp.initialize(lambda: make_examples(nlp))
    weighted = [node for node in nlp.get_pipe("bert_tagger").model.walk() if node.shims]
    mix = next(mix_of(node) for node in weighted if node.name == "layer_features")
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([1.0, 2.0, 5.0]).log())
        mix.scale.fill_(0.5)
    if replaced:
        nlp.replace_listeners("bert_encoder", "bert_tagger", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "pipeline")
    tagger, textcat = read_weights(str(tmp_path / "pipeline"))
    assert tagger[:2] == ("bert_tagger", (2, 0, 1)) and tagger[3:] == (0.5, 2)
    np.testing.assert_allclose(tagger.weights, [1 / 8, 2 / 8, 5 / 8], atol=1e-6)
    assert tagger.centre == pytest.approx((1 * 2 + 2 * 0 + 5 * 1) / 8)
    assert textcat[:2] == ("bert_textcat_multilabel", (0, 1, 2)) and textcat.scale == 1
    np.testing.assert_allclose(textcat.weights, [1 / 3] * 3, atol=1e-6)

    command = ["inspect", "weights", str(tmp_path / "pipeline"), "-o", str(tmp_path / "weights")]
    result = CliRunner().invoke(bert_app, command)
    assert result.exit_code == 0, result.output
    assert "bert_tagger: mean layer 0.88, scale 0.500" in result.output
    assert (tmp_path / "weights.png").stat().st_size and (tmp_path / "weights.html").exists()


def test_heads_that_read_one_layer_have_no_weights(make_nlp, tmp_path):
    make_nlp("ner").to_disk(tmp_path / "pipeline")
    with pytest.raises(ValueError, match="No head of .* has learned layer weights .bert_encoder, "):
        read_weights(str(tmp_path / "pipeline"))


def test_a_checkpoint_has_no_layer_weights(checkpoint):
    with pytest.raises(ValueError, match="There is no pipeline .* which a checkpoint doesn't have"):
        read_weights(checkpoint)


# --- documents in two dimensions


def write_docs(file, rows):
    nlp = spacy.blank("en")
    docs = []
    for text, cats in rows:
        doc = nlp.make_doc(text)
        doc.cats = cats
        docs.append(doc)
    DocBin(docs=docs).to_disk(file)
    return file


def test_categories_of_documents(tmp_path):
    rows = [("a", {"x": 1.0, "y": 0.0}), ("b", {"x": 0.0, "y": 1.0}), ("c", {"x": 0.0, "y": 0.0})]
    rows += [("d", {}), ("e", {"x": 0.9, "y": 0.2})]
    file = write_docs(tmp_path / "a.spacy", rows)
    found = read_labelled(file)
    assert [doc.text for doc in found.docs] == ["a", "b", "e"]
    assert (found.categories, found.left_out) == (["x", "y", "x"], 2)
    assert read_labelled(file, by="y").categories == ["not y", "y", "not y", "not y"]
    with pytest.raises(ValueError, match="No document of .* has the label 'z'. They have x, y"):
        read_labelled(file, by="z")
    both = write_docs(tmp_path / "b.spacy", [*rows, ("f", {"x": 1.0, "y": 1.0})])
    with pytest.raises(ValueError, match=r"Several labels hold of a document \(x, y\): 'f'.* --by"):
        read_labelled(both)
    assert read_labelled(both, by="y").categories[-1] == "y"
    alone = write_docs(tmp_path / "c.spacy", rows[:1])
    with pytest.raises(ValueError, match="two categories at least.*x, y; documents with one: 1 of"):
        read_labelled(alone)
    with pytest.raises(ValueError, match="There is no"):
        read_labelled(tmp_path / "nowhere.spacy")


def test_a_limit_takes_the_same_documents_of_the_whole_file(tmp_path):
    rows = [(f"t{i}", {"x": float(i < 50), "y": float(i >= 50)}) for i in range(100)]
    file = write_docs(tmp_path / "a.spacy", rows)
    first, again = read_labelled(file, limit=30), read_labelled(file, limit=30)
    texts = [doc.text for doc in first.docs]
    assert texts == [doc.text for doc in again.docs] and len(set(texts)) == 30
    assert texts == sorted(texts, key=lambda text: int(text[1:]))
    assert first.categories == ["x" if int(text[1:]) < 50 else "y" for text in texts]
    assert set(first.categories) == {"x", "y"}  # though the file is sorted by category
    assert len(read_labelled(file, limit=0).docs) == 100


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_documents_vector_is_the_mean_of_its_states(checkpoint, layer):
    source = open_source(checkpoint)
    texts = ["Anna swam.", *SENTENCES]
    vectors = encode_documents(source, [source.nlp.make_doc(text) for text in texts], layer)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(checkpoint),
        AutoModel.from_pretrained(checkpoint),
    )
    for text, found in zip(texts, vectors, strict=True):
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt")
            states = model.eval()(**inputs, output_hidden_states=True).hidden_states[layer][0]
        np.testing.assert_allclose(found, states.mean(0).numpy(), atol=1e-5)


def test_coordinates_are_sklearns():
    vectors = np.random.default_rng(0).normal(size=(40, 8)) * np.arange(1, 9) + 5
    points, names = pca(vectors)
    reference = PCA(n_components=2)
    expected = reference.fit_transform(vectors)
    signs = np.sign((points * expected).sum(0))
    np.testing.assert_allclose(points, expected * signs, atol=1e-8)
    shares = [f"{share:.0%} of variance" for share in reference.explained_variance_ratio_]
    assert [name.split(", ")[1] for name in names] == shares
    # The sign is a choice, and doesn't turn with the order of the documents.
    np.testing.assert_allclose(pca(vectors[::-1])[0], points[::-1], atol=1e-8)


def test_nearest_neighbours_are_sklearns(monkeypatch):
    rng = np.random.default_rng(1)
    categories = rng.choice(["x", "y", "z"], 90, p=[0.5, 0.3, 0.2])
    vectors = rng.normal(size=(90, 5)) + 100 + (categories == "x")[:, None]
    model = KNeighborsClassifier(n_neighbors=1)
    expected = cross_val_score(model, vectors, categories, cv=LeaveOneOut()).mean()
    accuracy, chance = nearest_neighbour_accuracy(vectors, categories.tolist())
    assert accuracy == pytest.approx(expected) and 0.4 < accuracy < 0.9
    same = (categories[:, None] == categories) & ~np.eye(90, dtype=bool)
    assert chance == pytest.approx(same.sum() / (90 * 89))
    monkeypatch.setattr("spacy_bert_heads.inspect_encoder.NEAREST_ROWS", 7)
    assert nearest_neighbour_accuracy(vectors, categories.tolist()) == (accuracy, chance)


def test_layers_and_methods_of_a_map(checkpoint, monkeypatch):
    source = open_source(checkpoint)
    docs = [source.nlp.make_doc(f"Anna swam {'a ' * i}") for i in range(12)]
    labelled = Labelled(docs, ["x", "y"] * 6, 0)
    last, first = map_documents(source, labelled), map_documents(source, labelled, layer=0)
    assert (last.layer, first.layer, last.depth) == (2, 0, 2)
    vectors = encode_documents(source, docs, 2)
    np.testing.assert_allclose(last.points, pca(vectors)[0], atol=1e-6)
    assert (last.accuracy, last.chance) == nearest_neighbour_accuracy(vectors, ["x", "y"] * 6)
    by_tsne = map_documents(source, labelled, method="tsne")
    assert by_tsne.points.shape == (12, 2) and np.ptp(by_tsne.points) > 0
    assert by_tsne.accuracy == last.accuracy  # of all dimensions
    assert map_documents(source, labelled, layer=-3).layer == 0
    for wrong in (3, -4):
        with pytest.raises(ValueError, match=f"There is no layer {wrong}: .* to 2, .* to -3"):
            map_documents(source, labelled, layer=wrong)
    with pytest.raises(ValueError, match="Unknown method 'umap'. Choose one of: pca, tsne"):
        map_documents(source, labelled, method="umap")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn"):
        map_documents(source, labelled, method="tsne")


# --- files


class Page(HTMLParser):
    """Read a page, and check that tags are closed and nothing is loaded from elsewhere."""

    VOID = ("meta", "img", "area", "br")

    def __init__(self, file) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.areas: list[dict] = []
        self.words = ""
        self.feed(file.read_text(encoding="utf8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert "href" not in found and tag not in ("script", "link", "iframe")
        if tag == "img":
            head, data = found["src"].split(",")
            assert head == "data:image/png;base64" and found["alt"]
            self.images.append(b64decode(data))
        if tag == "area":
            self.areas.append(found)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words += data


def check_files(files, name) -> tuple[np.ndarray, Page]:
    picture, page = files
    assert (picture.name, page.name) == (f"{name}.png", f"{name}.html")
    pixels, read = imread(picture), Page(page)
    assert read.images == [picture.read_bytes()]
    assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels[..., :3])) > 20
    return pixels, read


NASTY = 'They paid $5 and $6 <b>&amp;</b>\n\tto the bank\'s "friends" {picture}.'


@pytest.mark.parametrize("n, depth", [(2, 1), (6, 12), (20, 6)])
def test_files_of_a_word(tmp_path, n, depth):
    doc = spacy.blank("en")(NASTY)
    (place,) = [token.i for token in doc if token.text == "bank"]
    cosines = np.full((depth + 1, n, n), -0.123)
    cosines[:, range(n), range(n)] = 1
    view = WordView("some/folder", "bank", [doc[place : place + 1]] * n, cosines)
    files = save_word(view, tmp_path / "new" / "bank.html")
    _, page = check_files(files, "bank")
    assert page.words.count('They paid $5 and $6 <b>&amp;</b> to the bank\'s "friends"') == (
        n * (depth + 1)
    )
    assert page.words.count("-0.12") == n * (n - 1) * (depth + 1) + depth + 1
    assert f"layer {depth} (last)" in page.words


def test_a_long_text_is_cut_around_its_word():
    doc = spacy.blank("en")("one two three\nfour bank five six seven")
    assert in_context(doc[5:6], limit=50) == ("one two three four ", "bank", " five six seven")
    assert in_context(doc[5:6], limit=12) == ("…three four ", "bank", " five six…")
    doc = spacy.blank("zh")("我们坐在河岸上看船")
    (place,) = [token for token in doc if token.text == "岸"]
    assert in_context(doc[place.i : place.i + 1], limit=2) == ("…在河", "岸", "上看…")


def test_files_of_weights(tmp_path):
    views = [
        LayerWeights("bert_ner", (0, 1, 2), np.asarray([0.5, 0.25, 0.25]), 1.125, 2),
        LayerWeights("bert_<qa>", (1, 2), np.asarray([0.125, 0.875]), 2.0, 2),
        LayerWeights("bert_nli", (2,), np.asarray([1.0]), 1.0, 2),
    ]
    _, page = check_files(save_weights("a/$b$/c", views, tmp_path / "v1.2"), "v1.2")
    assert "bert_ner0.5000.2500.2500.751.125" in page.words
    assert "bert_<qa>–0.1250.8751.882.000" in page.words


@pytest.mark.parametrize("n_views, n_categories", [(1, 2), (2, 9)])
def test_a_map_can_be_pointed_at(tmp_path, n_views, n_categories):
    rng = np.random.default_rng(0)
    nlp = spacy.blank("en")
    names = [f"$c{i}$" for i in range(n_categories)]
    categories = [names[i % n_categories] for i in range(40)]
    docs = [nlp.make_doc(f'{i} "<b>"') for i in range(40)]
    points = [rng.normal(size=(40, 2)) for _ in range(n_views)]
    views = [MapView("a", 1, 2, one, ("x", "y"), 0.5, 0.25) for one in points]
    files = save_map(views, Labelled(docs, categories, 0), tmp_path / "map")
    pixels, page = check_files(files, "map")
    assert [area["title"] for area in page.areas] == [
        f'{category}: {i} "<b>"' for i, category in enumerate(categories)
    ] * n_views
    # Where one points there is something to be seen, and in between hardly ever.
    centres = [tuple(map(int, area["coords"].split(",")[:2])) for area in page.areas]
    seen = [pixels[y, x, :3].min() < 0.85 for x, y in centres]
    assert all(seen)
    beside = [pixels[y + 9, x + 9, :3].min() < 0.85 for x, y in centres]
    assert np.mean(beside) < 0.3


# --- the commands


def test_the_commands(checkpoint, make_nlp, tmp_path):
    make_nlp("textcat").to_disk(tmp_path / "pipeline")
    (tmp_path / "more.txt").write_text("\nA coaster\n\n", encoding="utf8")
    out = tmp_path / "out"
    more = ("--file", tmp_path / "more.txt", "--output", out / "word")
    result = run("inspect", "word", checkpoint, "coaster", *SENTENCES, *more)
    assert result.exit_code == 0, result.output
    view = compare_word(open_source(checkpoint), "coaster", [*SENTENCES, "A coaster"])
    means = " ".join(f"{mean:.2f}" for mean in view.self_similarity)
    assert result.output.splitlines() == [
        f"Mean similarity, embeddings to last layer: {means}",
        str(out / "word.png"),
        str(out / "word.html"),
    ]
    rows = [(f"Anna {i}", {"x": float(i % 2), "y": float(1 - i % 2)}) for i in range(8)]
    data = write_docs(tmp_path / "a.spacy", [*rows, ("none", {})])
    args = ("inspect", "map", checkpoint, tmp_path / "pipeline", data, "--output", out / "map")
    result = run(*args, "--encoder", "bert_encoder", "--layer", 1)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "Left out, without a category: 1"
    assert [line.partition(": nearest")[0] for line in lines[1:3]] == [
        checkpoint,
        str(tmp_path / "pipeline"),
    ]
    assert sorted(file.name for file in out.iterdir()) == [
        "map.html",
        "map.png",
        "word.html",
        "word.png",
    ]


@pytest.mark.parametrize(
    "args, message",
    [
        (("word", "nowhere/x/y", "bank", "a bank"), "Can't read a checkpoint"),
        (("weights", "nowhere"), "There is no pipeline 'nowhere'"),
        (("map", "a.spacy"), "Name one or two models, then the data"),
        (("map", "x", "a.spacy"), "There is no 'a.spacy'. Make it"),
    ],
)
def test_errors_are_one_sentence_and_no_traceback(args, message):
    result = run("inspect", *args)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.output and "Traceback" not in result.output


def test_without_matplotlib(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("inspect", "word", checkpoint, "coaster", *SENTENCES, "-o", tmp_path / "word")
    assert result.exit_code == 1
    assert "pip install matplotlib" in result.output


# --- a real encoder


def test_senses_separate_by_layer(minilm):
    river = ["We sat on the bank of the river.", "The canoe drifted to the muddy bank."]
    money = ["She put her savings into a bank.", "The bank raised its interest rates."]
    view = compare_word(open_source(minilm), "bank", [*river, *money])
    within = view.cosines[:, [0, 2], [1, 3]].mean(1)
    across = view.cosines[:, :2, 2:].mean((1, 2))
    assert abs(within[0] - across[0]) < 0.03  # embeddings know the position and nothing else
    assert within[-1] - across[-1] > 0.08
