"""Who may draw from which split, on every task."""

from __future__ import annotations

# The attacker never sees the owner's images, nobody trains or chooses on test, and an attack that states no data gets
# none.
ALLOWED = {
    "owner": ("owner", "validation"),
    "attacker": ("attacker", "validation"),
    "outsider": (),
    "judge": ("owner", "attacker", "validation", "test"),
}


def check_draw(role: str, split: str) -> None:
    """Raises PermissionError for a split that is not this role's to see."""
    if split not in ALLOWED[role]:
        raise PermissionError(f"the {role} may not draw from the {split} split")


def check_view(role: str, wanted: str) -> None:
    """Raises PermissionError for the view of another role: nobody gets back to more."""
    if role not in ("judge", wanted):
        raise PermissionError(f"the {role} cannot take the view of the {wanted}")


def asks(role: str) -> str:
    """The split on whose inputs a role looks at what a network gives."""
    return "test" if role == "judge" else "validation"


def trains_on(role: str) -> str:
    """The split that a role trains on."""
    return "owner" if role == "judge" else role
