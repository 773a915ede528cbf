"""A plugin of pytest: what hypothesis finds is not shrunk before it fails.

    pytest -p tools.unshrunk ...

For runs of which only the end is asked, such as those of mutants: shrinking takes most of the time of a failure.
"""

from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=(Phase.explicit, Phase.generate))
settings.load_profile("unshrunk")
