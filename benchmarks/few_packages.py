"""Programs for packages that have an environment of their own, see `few_labels.py`. Each reads the
JSON file that it is given, and prints JSON."""

SETFIT = """
import contextlib, json, sys, tempfile
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
given = json.load(open(sys.argv[1]))
with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
    body = models.Transformer(given["encoder"])
    pooling = models.Pooling(body.get_word_embedding_dimension())
    model = SetFitModel(
        model_body=SentenceTransformer(modules=[body, pooling], device="cpu"),
        model_head=LogisticRegression(),
    )
    data = Dataset.from_dict({"text": given["train_texts"], "label": given["train_labels"]})
    arguments = TrainingArguments(
        batch_size=16, num_iterations=20, num_epochs=1, seed=given["seed"],
        report_to="none", save_strategy="no", output_dir=folder,
    )
    Trainer(model=model, args=arguments, train_dataset=data).train()
    found = [str(label) for label in model.predict(given["test_texts"])]
right = sum(a == b for a, b in zip(found, given["test_labels"]))
print(json.dumps({"test": right / len(found)}))
"""
# Continuous bag of words or skip-gram (Mikolov et al. 2013), lower case, one thread.
VECTORS = r"""
import json, re, sys
from gensim.models import Word2Vec
given = json.load(open(sys.argv[1]))
sentences = []
for path in given["texts"]:
    for line in open(path, encoding="utf8"):
        text = json.loads(line)["text"] if path.endswith(".jsonl") else line
        for part in re.split(r"(?<=[.!?])\s+|\n", text.lower()):
            words = re.findall(r"\w+|[^\w\s]", part)
            if words:
                sentences.append(words)
model = Word2Vec(
    sentences, vector_size=100, window=5, min_count=5, epochs=5, workers=1, seed=0,
    sg=int(given["is_skip_gram"]),
)
model.wv.save_word2vec_format(given["output"])
print(json.dumps({"words": sum(map(len, sentences))}))
"""
