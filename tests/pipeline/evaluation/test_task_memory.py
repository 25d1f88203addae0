"""An evaluation of many examples needs little memory: answers are columns, and no row of objects is kept."""

import subprocess
import sys

from tests.children import ROOT

SCRIPT = """
import resource
import numpy as np, pyarrow as pa
import matplotlib.figure, scipy.sparse, scipy.special
from pipeline.evaluation.answers import TableRows
from pipeline.evaluation.task import MODEL, Judged, TaskEvaluationConfig, answers_to, evaluation_of
from pipeline.tasks.classification import KIND

class Work:
    def progress(self, done, total, unit): ...

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

labels, rng = [f"label {i}" for i in range(8)], np.random.default_rng(0)
texts = ["some words of a text " * 4 + str(i) for i in range(150_000)]
table = pa.table({"id": texts, "text": texts, "label": [labels[i % 8] for i in range(len(texts))]})
del texts

def answering(rows):
    probabilities = rng.dirichlet(np.ones(8), len(rows))
    return [{"label": labels[one.argmax()], "probability": float(one.max()), "probabilities": one}
            for one in probabilities]

before = peak()
answers = answers_to(table.select(["text"]), answering, MODEL, Work())
after = peak()
few = slice(0, 30_000)  # for the sake of time
judged = Judged({"labels": labels, "max_tokens": 9}, TableRows(table)[few], {MODEL: answers[few]})
evaluation_of(KIND, TaskEvaluationConfig(), judged)
print(after - before, peak() - before)
"""


def test_evaluation_of_many_examples_needs_little_memory():
    """Evaluations ran out of memory because every output was kept (transformers#8476, #25313)."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT)
    of_answers, of_all = map(int, done.stdout.split())  # MB
    assert of_answers < 20  # as dicts with an array each they took 39
    assert of_all < 90  # then 102; most of it are 100 resamples at once
