"""The road from a head to transformers has few stops."""

import traceback
from pathlib import Path

import spacy
from joint import make_docs

import spacy_bert_heads
from spacy_bert_heads.encoder.model import checkpoint_of

OURS = str(Path(spacy_bert_heads.__file__).parent)


def frames_of_ours(nlp, model, head: str) -> list[str]:
    """Our frames on the stack when transformers' embeddings begin, from the head's `predict`."""
    seen: list[list[str]] = []

    def note(module, args, kwargs):
        stack = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OURS)]
        names = [frame.name for frame in stack]
        seen.append(names[names.index("predict") :])

    for shim in model.shims:
        shim.version += 1  # so that the inference copy gets the hook
        hook = shim.module.model.embeddings.register_forward_pre_hook(note, with_kwargs=True)
    nlp.get_pipe(head).predict(make_docs(nlp)[:1])
    hook.remove()
    return seen[0]


def test_eight_frames_at_most(joint):
    nlp = spacy.load(joint)
    encoder = nlp.get_pipe("bert_encoder").model
    frames = frames_of_ours(nlp, encoder, "bert_ner")
    assert len(frames) <= 8, frames
    nlp.replace_listeners("bert_encoder", "bert_ner", ["model.tok2vec"])
    own = nlp.get_pipe("bert_ner").model.get_ref("tok2vec")
    assert checkpoint_of(own) is not checkpoint_of(encoder)
    frames = frames_of_ours(nlp, own, "bert_ner")
    assert len(frames) <= 8, frames
