"""A whole run, for tests that look at it or compare with it."""

import pytest

import mgdet.engine.loop as loop
from tiny import ALONE


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """A run that nobody disturbed, with the models and the optimizer that it used."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    seen = {}

    class Watched(loop.Run):
        def to_the_end(self, loader):
            seen["run"] = self
            for name, module in (("student", self.student), ("teacher", self.stepper.teacher)):
                state = module.state_dict()
                seen[f"{name} at the start"] = {key: value.clone() for key, value in state.items()}
            super().to_the_end(loader)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Watched)
        assert loop.train(tiny.config(), folder, resume=False, world=ALONE) == 0
    return folder, seen
