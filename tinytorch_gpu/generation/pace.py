"""How many tokens to draft: what drafts have gained so far against what they cost."""

from collections import deque

SAMPLES = 5  # times kept of each size; the least forgives interruptions
FORGET = 0.9  # weight of the past rounds against the last one
PRIOR = (1.4, 2.0)  # accepted of tested tokens before anything is known: hopeful enough to try
LONGEST_REST = 128


class Pace:
    """Chooses the length of the next draft, 0 for none, to make the most tokens a second.

    A round with k drafted tokens of which each is accepted with probability a gives
    (1 - a^(k+1)) / (1 - a) tokens (Leviathan et al. 2023, eq. 1) and takes the time that rounds of k took
    before, between known sizes by interpolation. Where no length pays, ordinary steps follow, and after ever
    longer rests one more trial: a text may become easier to guess.
    """

    def __init__(self, most: int):
        self.most = most
        self._times: dict[int, deque[float]] = {}
        self._accepted, self._tested = PRIOR
        self._rest, self._resting = 8, 0

    @property
    def acceptance(self) -> float:
        """The share of the tested drafted tokens that came true, of late."""
        return self._accepted / self._tested

    def choose(self, most: int) -> int:
        """The number of tokens to draft, at most ``most``."""
        most = min(most, self.most)
        if most < 1 or len(self._times.get(0, ())) < 3:
            return 0  # what an ordinary step takes must be known first
        best = max(range(1, most + 1), key=self.gain)
        if self.gain(best) > 1:
            self._resting = 0
            return best
        if self._resting == 0:
            self._resting = self._rest
        self._resting -= 1
        if self._resting > 0:
            return 0
        self._rest = min(2 * self._rest, LONGEST_REST)
        return best

    def gain(self, drafted: int) -> float:
        """How many times as many tokens a second a draft of this length is expected to give."""
        a = min(self.acceptance, 0.999)
        return (1 - a ** (drafted + 1)) / (1 - a) * self._time(0) / self._time(drafted)

    def _time(self, drafted: int) -> float:
        known = sorted(self._times)
        if drafted in self._times:
            return min(self._times[drafted])
        low = max(k for k in known if k < drafted)
        above = [k for k in known if k > drafted]
        if not above:  # hopeful again: longer than any so far may cost no more
            return min(self._times[low])
        start, end = min(self._times[low]), min(self._times[above[0]])
        return start + (end - start) * (drafted - low) / (above[0] - low)

    def step(self, seconds: float) -> None:
        """Note an ordinary step."""
        self._note(0, seconds)

    def round(self, drafted: int, tested: int, accepted: int, seconds: float) -> None:
        """Note a round: its longest draft, how many drafted tokens were looked at (up to the first
        wrong one of each row) and how many came true."""
        self._note(drafted, seconds)
        self._accepted = FORGET * self._accepted + accepted
        self._tested = FORGET * self._tested + tested
        if self._resting == 0 and 0 in self._times and self.gain(drafted) > 1:
            self._rest = 8

    def _note(self, drafted: int, seconds: float) -> None:
        self._times.setdefault(drafted, deque(maxlen=SAMPLES)).append(max(seconds, 1e-9))
