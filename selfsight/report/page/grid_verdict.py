"""What a grid says, in one sentence for each data set."""

from selfsight.report.legend import label
from selfsight.report.render import number
from selfsight.report.rows import COLUMNS, FLOORS, Row
from selfsight.report.statistics import interval

NAMED = 8  # rows that a sentence names
FEW = 3  # rows below the best one that are named, too


def verdict(group: list[Row]) -> str:
    """Which row of a data set is best, which are not distinguishable from it, and over how many
    seeds; nothing is claimed that the marks of the rows do not say.

    Args:
        group: the rows of one data set, as `report.rows.rows` orders and marks them.

    >>> verdict([])
    'Nothing has been measured yet.'
    """
    main = group[0].main if group else None
    measured = [row for row in group if row.values(main)]
    if not measured:
        return "Nothing has been measured yet."
    best = max(measured, key=lambda row: row.mean(main))
    seeds = len(best.values(main))
    value = number(*interval(list(best.values(main).values())))
    of = f"{COLUMNS[main]} {value} %, n = {seeds} seed{'s' if seeds > 1 else ''}"
    name = label(best, group)
    if best.method in FLOORS:
        said = f"No method has a higher mean than the baseline {name} ({of})"
    else:
        said = f"{name} {'is best' if best.mark == 'best' else 'has the highest value'} ({of})"
    if best.mark != "best":
        said += ", and one seed proves no difference"
    return said + _others(best, measured, group) + _unfinished(group)


def _others(best: Row, measured: list[Row], group: list[Row]) -> str:
    others = [row for row in measured if row is not best]
    by_mark = {m: [label(r, group) for r in others if r.mark == m] for m in ("=", "?", "")}
    if not others:
        return ", the only row that was measured"
    if best.mark != "best":
        return ""
    parts = []
    if by_mark["="]:
        verb = "is" if len(by_mark["="]) == 1 else "are"
        parts.append(f"{_named(by_mark['='])} {verb} not distinguishable from it")
    if by_mark["?"]:
        parts.append(f"nothing can be said of {_named(by_mark['?'])}, too few seeds are common")
    if by_mark[""]:
        several = len(by_mark[""]) > 1
        rest = _named(by_mark[""])
        if several and not parts:
            rest = "all other rows"
        elif len(by_mark[""]) > FEW:
            rest = f"the other {len(by_mark[''])} rows"
        parts.append(f"{rest} {'are' if several else 'is'} below it")
    return "".join(f"; {part}" for part in parts)


def _named(names: list[str]) -> str:
    shown, more = names[:NAMED], len(names) - NAMED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _unfinished(group: list[Row]) -> str:
    failed, cells = sum(len(row.failed) for row in group), sum(len(row.cells) for row in group)
    return f". {failed} of {cells} cells are unfinished." if failed else "."
