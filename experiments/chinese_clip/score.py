r"""Recall of stored predictions, with the result file of the original's evaluation scripts.

    python -m experiments.chinese_clip.score --predictions=DIR/valid_predictions.jsonl \
        --truth=MUGE/valid_texts.jsonl --output=DIR/valid_score.json

Predictions of texts are scored by `{split}_texts.jsonl`, those of images by
`{split}_texts.tr.jsonl`, or by `{split}_texts.jsonl` from which it follows. The file holds
`{"success": true, "score": ..., "scoreJson": {...}}`, or what is wrong with the predictions.
"""

import json
from pathlib import Path

from absl import flags

from experiments.common import print_results, run
from jaxlab.chinese_clip.evaluate import score_files

_PREDICTIONS = flags.DEFINE_string("predictions", None, "The .jsonl file of predictions.")
_TRUTH = flags.DEFINE_string("truth", None, "{split}_texts.jsonl or {split}_texts.tr.jsonl.")
_OUTPUT = flags.DEFINE_string("output", None, "The .json file of the result; may be left out.")
_MISSING = flags.DEFINE_enum(
    "missing", "miss", ["miss", "skip"], "Queries without truth: not found, or not counted."
)


def main() -> int:
    """Score, print, write."""
    if not (_PREDICTIONS.value and _TRUTH.value):
        raise ValueError("--predictions and --truth are needed; see --help")
    result = score_files(_TRUTH.value, _PREDICTIONS.value, missing=_MISSING.value)
    if _OUTPUT.value:
        output = Path(_OUTPUT.value).expanduser()
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, ensure_ascii=False) + "\n", "utf-8")
    if not result["success"]:
        raise ValueError(f"no score: {result['errorDetail']}")
    print_results(result["scoreJson"], title=str(_PREDICTIONS.value))
    return 0


if __name__ == "__main__":
    run(main)
