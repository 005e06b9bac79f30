"""The choice among the measured artifacts: what meets the requirements, what is on the front, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from edgekit.cli.output import size
from edgekit.errors import QualityGateError
from edgekit_workflow.bench import BUSY
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.optimize.pareto import front
from edgekit_workflow.optimize.settings import Settings
from edgekit_workflow.optimize.stages import Record, kl_of


@attrs.frozen
class Measured:
    """An artifact with what was measured of it.

    Attributes:
        name: within the run.
        record: of its stage.
        speed: the record of the stage accelerate; empty where it was not measured.
        gates: the record of the stage validate; empty where it was not judged.
        kl: KL divergence from the source, no less than the noise floor.
    """

    name: str
    record: Mapping[str, Any]
    speed: Mapping[str, Any]
    gates: Mapping[str, Any]
    kl: float

    @property
    def point(self) -> dict[str, float | None]:
        """The values by which it is compared."""
        return {
            "kl": self.kl,
            "nbytes": self.record["nbytes"],
            "memory": self.speed.get("memory"),
            "speed": self.speed.get("speed"),
        }


def measured(stages: Mapping[str, Any]) -> list[Measured]:
    """Return the artifacts that the stages made, with what was measured of them."""
    noise = stages["baseline"]["noise_floor"]
    speeds, judged = ({r["name"]: r for r in stages[stage] if r} for stage in ("accelerate", "validate"))
    return [
        Measured(r["name"], r, speeds.get(r["name"], {}), judged.get(r["name"], {}), kl_of(r, noise))
        for r in stages["quantize"]
    ]


def choose(stages: Mapping[str, Any], settings: Settings) -> Record:
    """Return the result of a run: the front, the chosen artifact and the reasons.

    Args:
        stages: the records, from `Stages.all`.
        settings: with the requirements and the priority.

    Returns:
        ``front`` (names), ``chosen`` (a name, or None), ``reasons`` and ``refused`` (reasons by name).
    """
    within = [m for m in measured(stages) if settings.budget is None or m.record["nbytes"] <= settings.budget]
    ahead = [within[at] for at in front([m.point for m in within])]
    refused = {m.name: fault for m in within if (fault := _fault(m, settings))}
    good = [m for m in ahead if m.name not in refused]
    best = min(good, key=lambda m: _rank(m, good, settings.priority), default=None)
    return {
        "front": [m.name for m in ahead],
        "chosen": best.name if best else None,
        "reasons": _reasons(best, good, stages, settings) if best else [],
        "refused": refused,
    }


def refuse_unmet(result: Mapping[str, Any], stages: Mapping[str, Any], settings: Settings) -> None:
    """Raise if no artifact meets the requirements.

    Raises:
        QualityGateError: names the one that comes nearest, and what it lacks.
    """
    if result["chosen"] is not None:
        return
    nearest = min(measured(stages), key=lambda m: (len(_fault(m, settings)), m.kl), default=None)
    if nearest is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in stages["left_out"].items())
        raise QualityGateError(f"no artifact was made ({reasons or 'no candidate'}); {settings.to} has the records")
    raise QualityGateError(
        f"no artifact of {counted_names(result)} meets the requirements; {nearest.name} comes nearest: "
        f"{_fault(nearest, settings) or 'it is not on the front'}. Give a larger budget or weaker requirements; "
        f"`edgekit report {settings.to}` shows all"
    )


def counted_names(result: Mapping[str, Any]) -> str:
    """The number of artifacts that were refused, with its noun."""
    count = len(result["refused"])
    return f"{count} artifact{'s' * (count != 1)}" if count else "none"


def _fault(each: Measured, settings: Settings) -> str:
    """Return which requirements an artifact does not meet; empty if it meets all."""
    quality, speed = each.record["quality"], each.speed.get("speed")
    faults = []
    if settings.budget is not None and each.record["nbytes"] > settings.budget:
        faults.append(f"{each.record['nbytes']:,} bytes, above the budget of {settings.budget:,}")
    if settings.max_kl is not None and quality["kl"] > settings.max_kl:
        faults.append(f"KL divergence {quality['kl']:.6f}, above {settings.max_kl:g}")
    if settings.min_top1 is not None and quality["top1"] < settings.min_top1:
        faults.append(f"top-1 agreement {quality['top1']:.2%}, below {settings.min_top1:.2%}")
    if settings.min_speed is not None and speed is not None and speed < settings.min_speed:
        faults.append(f"{speed:.1f} tokens a second, below {settings.min_speed:g}")
    failed = [
        gate["name"] for gate in each.gates.get("gates", ()) if gate["passed"] is False and _decides(gate, settings)
    ]
    if failed:
        faults.append(f"failed gates: {', '.join(failed)}")
    return "; ".join(faults)


def _decides(gate: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a gate excludes an artifact: of performance only with a policy of one's own, else `min_speed` decides."""
    return gate["category"] != "performance" or settings.policy is not None


def _rank(each: Measured, all_of_them: Sequence[Measured], priority: str) -> tuple[float, ...]:
    """Return a sort key, least first: what the priority asks for, then quality, then size.

    Divergences within one standard error of the least count as equal to it, so that noise does not decide.
    """
    least = min(all_of_them, key=lambda m: m.kl)
    tie = least.kl + float(least.record["quality"]["kl_error"])
    kl, nbytes, speed = max(each.kl, tie), float(each.record["nbytes"]), float(each.speed.get("speed") or 0.0)
    keys = {"quality": (kl, nbytes, -speed), "size": (nbytes, kl, -speed), "speed": (-speed, kl, nbytes)}
    return keys[priority]


def _reasons(best: Measured, good: Sequence[Measured], stages: Mapping[str, Any], settings: Settings) -> list[str]:
    source, quality = stages["baseline"], best.record["quality"]
    share = best.record["nbytes"] / source["nbytes"]
    words = {"quality": "the least divergence", "size": "the fewest bytes", "speed": "the most tokens a second"}
    reasons = [
        f"of {len(good)} on the front that meet every requirement it has {words[settings.priority]}",
        f"{size(best.record['nbytes'])}, {share:.0%} of the source's {size(source['nbytes'])}"
        + (f", within the budget of {size(settings.budget)}" if settings.budget is not None else ""),
        f"KL divergence {quality['kl']:.6f} ± {quality['kl_error']:.6f} nats, top-1 agreement {quality['top1']:.2%}",
        f"perplexity {quality['perplexity']:.4f}, the source's {quality['baseline_perplexity']:.4f}",
    ]
    others = best.speed.get("others") or 0.0
    if best.speed.get("speed"):
        reasons.append(
            f"{best.speed['speed']:.0f} tokens a second with {best.speed['runtime']}, at most "
            f"{size(best.speed['memory'])} of memory"
            + (f", while other programs used {others:.0%} of the processors" if others >= BUSY else "")
        )
    failed = [GateResult(**each).line for each in best.gates.get("gates", ()) if each["passed"] is False]
    if failed:  # of performance: others exclude an artifact
        reasons.append(f"it fails, which excludes it only under a policy of your own: {'; '.join(failed)}")
    return reasons


__all__ = ["Measured", "choose", "measured", "refuse_unmet"]
