"""Settings by head: tests look at span groups too, which are written where they are asked for."""

GROUPS: dict[str, dict] = {"ner": {"spans_key": "ents"}, "qa": {"spans_key": "answers"}}
