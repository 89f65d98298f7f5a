"""The targets: each is an ordered pipeline of rules, visible as a list, and the names its output uses."""

from codegen.targets.base import Target
from codegen.targets.qeff import QEFF
from codegen.targets.rmpad import RMPAD

TARGETS: dict[str, Target] = {QEFF.name: QEFF, RMPAD.name: RMPAD}
