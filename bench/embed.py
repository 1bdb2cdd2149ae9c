"""python -m bench.embed method=NAME model=NAME data=NAME ... out=FOLDER

Marks a network that you have: starts from model.checkpoint (or model.weights),
trains by train.*, and writes into the folder, which must not hold a key yet:

  model.safetensors  marked, with the names and dtypes of what it came from
  key.safetensors    the key, mode 600, drawn from the operating system
  commitment.json    hashes of both, to be published or time-stamped
  statement.txt      whose hash is in it: statement='who, what, when'

  python -m bench.embed method=neuralmark model=timm model.name=resnet18 \\
      model.checkpoint=mine.pth data=imagefolder data.path=photos out=marked
  python -m bench.embed model=module model.name=package.nets:Net \\
      model.checkpoint=mine.pth method.epochs=5 out=marked

All words of python -m bench but attack=, which there is none of. What is given
is taken as it is (host.epochs=0) and trained on with the mark (method.epochs,
or train.epochs); with neither checkpoint nor weights a network is trained from
its start. model.inputs says how its pixels were normalised. Printed: fidelity
on validation, BER, the weakest bit, p, and what random keys read.

Verify: python -m bench.verify SUSPECT --key marked/key.safetensors
"""

from __future__ import annotations

import sys

from bench.cli import usage
from bench.errors import ConfigError, UserError


def run(argv: list[str]) -> bool:
    """Embed by a command line's words; False where the mark does not verify. Raises UserError."""
    own = {"out": "", "statement": ""}
    words = []
    for word in argv:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        elif word in ("-m", "--multirun"):
            raise ConfigError("one network at a time: no sweep")
        else:
            words.append(word)
    if not own["out"]:
        raise ConfigError("out=FOLDER says where the marked network and its key go")
    usage.check(words)
    from bench.cli.compose import composed
    from bench.cli.terminal import live
    from bench.experiment import prepare
    from bench.owner import embedding

    embedding.room(own["out"])
    with live() as (say, progress):
        made = embedding.embed(prepare(composed(embedding.words(words)), say, progress), own["out"], own["statement"])
    for line in embedding.lines(made):
        print(line)
    if not made.evidence.detected:
        raise UserError("the mark does not verify: more epochs (method.epochs=), a stronger mark, or another layer")
    return True


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: __doc__, run, "files"))
