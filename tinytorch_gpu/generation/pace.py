"""How many tokens to draft: what drafts have gained so far against what they cost."""

from collections import deque

SAMPLES = 5  # times kept of each size; the least forgives interruptions
FORGET = 0.95  # weight of the past against one more tested token
AGE, LIGHTEST = 0.98, 2.0  # the same for an ordinary step, down to as many tested tokens
# Accepted of tested tokens before anything is known. Drafts that are watched show without cost whether they
# come true, the others can be tried only.
PRIOR, WATCHED_PRIOR = (1.4, 2.0), (0.5, 2.0)
# What a round is thought to cost before one was timed, in ordinary steps: by itself, and a drafted token.
ROUND, TOKEN = 1.25, 0.2
FIRST = 8.0  # what the first round of a length costs more, in ordinary steps, before one was seen
FOUND = 0.3  # the share of a text that watched drafts are there for
REST, MOST_REST = 32, 128  # ordinary steps after a trial for each one that it lost
SHORTEST_REST, LONGEST_REST = 8, 256


class Pace:
    """Chooses the length of the next draft, 0 for none, to make the most tokens a second.

    A round with k drafted tokens of which each is accepted with probability a gives
    (1 - a^(k+1)) / (1 - a) tokens (Leviathan et al. 2023, eq. 1) and takes the time that rounds of k took
    before, or what those of other lengths let expect; the first of each length in a text is not believed, since it
    records its pass, or even compiles: the rest of the text must be worth that. Lengths are one less than powers
    of two, so few have to be learnt.

    Where no length pays, ordinary steps follow. A trial comes again when they have taken so many times what
    the last one lost that it does not matter (``REST``, doubled each time): the text may become easier to
    guess. ``watched`` drafts cost nothing and are compared with ordinary steps too (``seen``), so that no
    trial is made while they do not come true.
    """

    def __init__(self, most: int, watched: bool = False):
        self.most, self.watched = most, watched
        self._times: dict[int, deque[float]] = {}
        self._begun: dict[
            int, float | None
        ] = {}  # lengths tried in this text: seconds of the first round
        self._first = FIRST
        self._accepted, self._tested = WATCHED_PRIOR if watched else PRIOR
        self._rest, self._resting = REST, 0

    @property
    def acceptance(self) -> float:
        """The share of the tested drafted tokens that came true, of late."""
        return self._accepted / self._tested

    def begin(self) -> None:
        """Another text begins."""
        self._begun.clear()

    def choose(self, most: int, left: int) -> int:
        """The number of tokens to draft, at most ``most``, where ``left`` more are wanted."""
        most = min(most, self.most, left)
        if most < 1 or len(self._times.get(0, ())) < 3:
            return 0  # what an ordinary step takes must be known first
        best = max(_lengths(most), key=lambda k: self._promise(k, left))
        if self._promise(best, left) > 1:
            return best
        if self._resting > 0:
            self._resting -= 1
            return 0
        if best not in self._begun and left < 4 * self._first:
            return 0  # too little is left to learn anything for
        if self.watched and (self.gain(best) > 1 or self._tokens(best) < _guessed(best)):
            return 0  # what is known would not pay for a first round, or for any
        return best

    def _promise(self, drafted: int, left: int) -> float:
        """The gain over the rest of the text, the first round of a length paid."""
        tokens = left * (FOUND if self.watched else 1)
        first = 0 if drafted in self._begun else self._first
        return tokens / (tokens / self.gain(drafted) + first)

    def gain(self, drafted: int) -> float:
        """How many times as many tokens a second a draft of this length is expected to give."""
        return self._tokens(drafted) / self._price(drafted)

    def _tokens(self, drafted: int) -> float:
        """Tokens that a round with this draft is expected to give."""
        a = min(self.acceptance, 0.999)
        return (1 - a ** (drafted + 1)) / (1 - a)

    def _price(self, drafted: int) -> float:
        """What a round takes, in ordinary steps."""
        step = min(self._times[0])
        known = {k: min(times) / step for k, times in self._times.items() if k > 0}
        if drafted in known:
            return known[drafted]
        below, above = [k for k in known if k < drafted], [k for k in known if k > drafted]
        if not known:
            return _guessed(drafted)
        if not above:
            return known[max(below)] + TOKEN * (drafted - max(below))
        high = min(above)
        # Of what a round takes beyond a step, half does not depend on its length if nothing else is known.
        low = max(below, default=0)
        start = known[low] if below else (1 + known[high]) / 2
        return start + (known[high] - start) * (drafted - low) / (high - low)

    def step(self, seconds: float) -> None:
        """Note an ordinary step. What was known of drafts grows old meanwhile."""
        self._note(0, seconds)
        if self._tested * AGE > LIGHTEST:
            self._accepted, self._tested = AGE * self._accepted, AGE * self._tested

    def seen(self, tested: int, accepted: int) -> None:
        """Note that of ``tested`` drafted tokens (up to the first wrong one) so many came true."""
        weight = FORGET**tested
        self._accepted = weight * self._accepted + accepted
        self._tested = weight * self._tested + tested

    def round(
        self, drafted: int, tested: int, accepted: int, seconds: float, once: float = 0.0
    ) -> None:
        """Note a round: its longest draft, how many drafted tokens were looked at (up to the first
        wrong one of each row) and how many came true, what it took, and what was spent before it that the
        next one need not spend again."""
        self.seen(tested, accepted)
        if drafted not in self._begun:
            self._begun[drafted] = seconds
            return
        self._note(drafted, seconds)
        if 0 not in self._times:
            return
        first, self._begun[drafted] = self._begun[drafted], None
        if first is not None:
            self._first = max(first - seconds, 0) / min(self._times[0])
        if self.gain(drafted) > 1:
            self._rest, self._resting = REST, 0
            return
        lost = (seconds + once) / min(self._times[0]) - self._tokens(drafted)
        self._resting = int(min(max(self._rest * lost, SHORTEST_REST), LONGEST_REST))
        self._rest = min(2 * self._rest, MOST_REST)

    def _note(self, drafted: int, seconds: float) -> None:
        self._times.setdefault(drafted, deque(maxlen=SAMPLES)).append(max(seconds, 1e-9))


def _lengths(most: int) -> list[int]:
    """The lengths of drafts to choose from: with the token before them 2, 4, 8 ... rows, and the longest."""
    return [k for k in (2**n - 1 for n in range(1, most.bit_length() + 1)) if k < most] + [most]


def _guessed(drafted: int) -> float:
    """What a round of this length is thought to take, in ordinary steps, before any was timed."""
    return ROUND + TOKEN * drafted
