"""What a dream's page on a model hub says: facts as JSON for programs, a model card for people."""

import hashlib
import re
from pathlib import Path
from typing import Any

from dreamgym.checkpoint import Dream
from dreamgym.json_files import sealed
from dreamgym.provenance import file_name

FACTS_FILE = "dream.json"
CARD_FILE = "README.md"
PICTURE_FILE = "imagined_beside_real.png"
FORMAT = 1

_TOLD = (
    "algo",
    "network",
    "preset",
    "seed",
    "interactions",
    "imagined_steps",
    "seconds",
    "score",
    "random",
    "fidelity",
    "data",
    "version",
    "commit",
    "machine",
    "command",
    "precision",
)
"""What of a dream's metadata its facts repeat, so that nobody has to open the file for it."""

_TAGS = ("dreamgym", "reinforcement-learning", "world-model", "model-based-reinforcement-learning", "gymnasium")


def dream_facts(file: Path, dream: Dream, licence: str) -> dict[str, Any]:
    """The facts of an exported dream, sealed with their own checksum.

    Args:
        file: the dream's file.
        dream: what is in it.
        licence: under which it is given away, as the hub names it: "mit".

    Returns:
        Plain JSON: ``format``; ``file``, its ``bytes`` and ``file_sha256``; ``game``, ``actions``, ``parameters`` and
        ``licence``; and of the dream's metadata what it recorded about its making and its score.
    """
    content = file.read_bytes()
    facts: dict[str, Any] = {
        "format": FORMAT,
        "file": f"{file_name(dream.world_model.config.game)}.safetensors",
        "bytes": len(content),
        "file_sha256": hashlib.sha256(content).hexdigest(),
        "licence": licence,
        "game": dream.world_model.config.game,
        "actions": dream.world_model.num_actions,
        "parameters": sum(dream.world_model.parameter_counts().values()),
        "policy_parameters": sum(tensor.numel() for tensor in dream.policy.values()),
        "start_states": len(dream.starts.latents),
    }
    facts |= {name: dream.metadata[name] for name in _TOLD if dream.metadata.get(name) not in (None, [], {})}
    return sealed(facts)


def model_card(facts: dict[str, Any], repo: str, picture: bool) -> str:
    """The page's text: Markdown after a YAML block that the hub reads.

    Args:
        facts: of :func:`dream_facts`.
        repo: where it will be, "owner/name".
        picture: whether there is one.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=facts["licence"],
        library_name="dreamgym",
        pipeline_tag="reinforcement-learning",
        tags=[*_TAGS, _word(facts["game"])],
        model_name=repo.rpartition("/")[2],
        eval_results=_results(facts),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(facts, repo, picture)}"


def _results(facts: dict[str, Any]) -> list[Any] | None:
    """The real score as the hub's tables of results have it; None where none was measured."""
    from huggingface_hub import EvalResult

    score = facts.get("score")
    if not score:
        return None
    return [
        EvalResult(
            task_type="reinforcement-learning",
            dataset_type=_word(facts["game"]),
            dataset_name=f"{_word(facts['game'])}, the real game",
            metric_type="mean_reward",
            metric_name=f"mean score of {_count(score)} episodes, 95 % {score['low']:.2f} to {score['high']:.2f}",
            metric_value=round(float(score["mean"]), 2),
            verified=False,
        )
    ]


def _text(facts: dict[str, Any], repo: str, picture: bool) -> str:
    game, file = _word(facts["game"]), facts["file"]
    shown = f"![The real game above, the dream of it below: same start, same actions]({PICTURE_FILE})\n\n"
    return f"""# A dream of {game}

A small world model of {game} that is a Gymnasium and Stable-Baselines3 environment, made with dreamgym.

{shown if picture else ""}{_score_text(facts)}

## Load it

```sh
pip install 'dreamgym[hub]'
dreamgym pull {repo} --revision COMMIT --out {file}   # COMMIT: the one that you have looked at
dreamgym info {file}
dreamgym evaluate {file} --episodes 32   # its policy, if it has one, in the real game
```

```python
import gymnasium as gym, dreamgym

env = gym.make("Dream-{game}-v0", checkpoint="{file}")
```

`{file}` holds safetensors and JSON alone: nothing in it is unpickled or run. Its SHA-256 is `{facts["file_sha256"]}`.

## What it is

{_table(facts)}

What is said here is its maker's word; `dreamgym evaluate` measures it anew. A dream is wrong where it has seen little:
scores count in the real game only.
{_again(facts)}
Licence: {_word(facts["licence"])}.
"""


def _score_text(facts: dict[str, Any]) -> str:
    score, random = facts.get("score"), facts.get("random")
    if not score:
        return "No score in the real game was recorded."
    beside = f"; random actions score {random['mean']:.2f}" if random else ""
    seed = f", seed {facts['seed']}" if "seed" in facts else ""
    return (
        f"**Score in the real game: {score['mean']:.2f}** (95 % {score['low']:.2f} to {score['high']:.2f}, mean of "
        f"{_count(score)} episodes{seed}{beside})."
    )


def _table(facts: dict[str, Any]) -> str:
    rows = {
        "preset": facts.get("preset"),
        "seed": facts.get("seed"),
        "algorithm": facts.get("algo"),
        "real steps": _number(facts.get("interactions")),
        "imagined steps": _number(facts.get("imagined_steps")),
        "parameters": f"{facts['parameters']:,} in the world model, {facts['policy_parameters']:,} in the policy",
        "minutes": None if "seconds" not in facts else f"{facts['seconds'] / 60:.1f}",
        "machine": facts.get("machine"),
        "dreamgym": facts.get("version"),
        "commit of dreamgym": facts.get("commit"),
        "size": f"{facts['bytes']:,} bytes",
    }
    lines = [f"| {name} | {_word(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _again(facts: dict[str, Any]) -> str:
    if "command" not in facts:
        return ""
    return f"\nMade again by:\n\n```sh\n{_word(facts['command']).replace(' && ', ' &&' + chr(10))}\n```\n"


def _count(score: dict[str, Any]) -> int:
    episodes = score["episodes"]
    return episodes if isinstance(episodes, int) else len(episodes)


def _number(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _word(value: Any) -> str:
    """A value in one line, without what Markdown or HTML would take for more than words: it may be a stranger's."""
    return re.sub(r"[`|<>\[\]]|[^\S ]+", " ", str(value))
