"""`dpexplore models`."""

from __future__ import annotations

import dataclasses

from dpexplore.cli.common import DeviceOption, JsonOption, emit, say


def models(as_json: JsonOption = False, device: DeviceOption = None) -> None:
    """List the curated models: parameters, vocabulary, memory needed and present, gated or not."""
    import dpexplore as dp

    known = dp.describe_models(device)
    if as_json:
        for info in known:
            emit({**dataclasses.asdict(info), "fits": info.fits})
        return
    say(f"{'name':24}{'parameters':>14}{'vocabulary':>12}{'memory':>10}  note")
    for info in known:
        marks = [info.note, *(["gated"] if info.gated else []), *([] if info.fits else ["does not fit here"])]
        say(
            f"{info.name:24}{info.parameters / 1e6:>12,.0f} M{info.vocab_size:>12,}"
            f"{info.bytes_needed / 2**30:>6.1f} GiB  {'; '.join(marks)}"
        )
    say(f"{known[0].bytes_present / 2**30:.1f} GiB are free.")
