"""Near misses 01: Numbers that are almost right, each with what it does wrong."""

import itertools

_made = itertools.count()


class _Number:
    """The right one, in pieces that a mistake can replace."""

    def __init__(self, value, parents=(), slopes=()):
        self.value, self.parents, self.slopes, self.grad, self.serial = (
            value,
            parents,
            slopes,
            0.0,
            next(_made),
        )

    def __add__(self, other):
        return type(self)(self.value + other.value, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        return type(self)(self.value * other.value, (self, other), self._slopes(other))

    def _slopes(self, other):
        return other.value, self.value

    def _order(self):
        seen, stack = {self}, [self]
        while stack:
            for parent in stack.pop().parents:
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return sorted(seen, key=lambda number: number.serial, reverse=True)

    def _hand_on(self):
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent.grad += slope * self.grad

    def backward(self):
        self.grad = 1.0
        for number in self._order():
            number._hand_on()


class Number__overwrites(_Number):
    """You write into `grad` where you should add: a Number used twice keeps only what arrives
    last.
    """

    def _hand_on(self):
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent.grad = slope * self.grad


class Number__keeps_the_first(_Number):
    """You pass something on only to a parent that has nothing yet: a Number used twice keeps only
    what arrives first.
    """

    def _hand_on(self):
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent.grad = parent.grad or slope * self.grad


class Number__own_factor(_Number):
    """In `*` each factor gets its own value as its slope; a * b moves by b when a moves, so the
    slope is the other factor.
    """

    def _slopes(self, other):
        return self.value, other.value


class Number__one_factor(_Number):
    """In `*` only the first factor has a slope; the second one moves the product as well, by the
    value of the first.
    """

    def _slopes(self, other):
        return other.value, 0.0


class Number__changes_its_factor(_Number):
    """Your `*` changes its left factor (`*=`, or an assignment to self.value); make a new Number
    and leave both as they are.
    """

    def __mul__(self, other):
        before = self.value
        self.value *= other.value
        return type(self)(self.value, (self, other), (other.value, before))


class Number__uses_the_updated_value(_Number):
    """Your `*` changes its left factor first, and then takes the changed value as a slope; leave
    both factors as they are.
    """

    def __mul__(self, other):
        self.value *= other.value
        return type(self)(self.value, (self, other), (other.value, self.value))


class Number__product_as_slope(_Number):
    """In `*` the slopes are the product itself; the slope of a factor is the other factor alone."""

    def _slopes(self, other):
        return self.value * other.value, self.value * other.value


class Number__oldest_first(_Number):
    """Only the parents of the result receive anything: the youngest Number must run first, and all
    older ones after it.
    """

    def _order(self):
        return super()._order()[::-1]


class Number__first_in_first_out(_Number):
    """A Number passes its gradient on as soon as its turn comes in a queue, before everything that
    uses it has run: sort by `serial` first.
    """

    def _order(self):
        seen, queue = {self: None}, [self]
        while queue:
            for parent in queue.pop(0).parents:
                if parent not in seen:
                    seen[parent] = None
                    queue.append(parent)
        return list(seen)


class Number__last_in_first_out(_Number):
    """You run Numbers as they come off the stack, before everything that uses them has run: collect
    first, then sort by `serial`.
    """

    def _order(self):
        seen, stack, order = {self}, [self], []
        while stack:
            order.append(stack.pop())
            for parent in order[-1].parents:
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return order


class Number__depth_first(_Number):
    """Your recursion goes down into a Number at its first visit, before its gradient is complete,
    and never returns.
    """

    def backward(self):
        self.grad = 1.0
        self._visit(set())

    def _visit(self, seen):
        if self in seen:
            return
        seen.add(self)
        self._hand_on()
        for parent in self.parents:
            parent._visit(seen)


class Number__every_path(_Number):
    """Your walk goes down every path, and sixty doublings give too many paths to finish. Go into
    each Number once.
    """

    def backward(self):
        self._receive(1.0)

    def _receive(self, g):
        self.grad += g
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent._receive(slope * g)


class Number__starts_every_number(_Number):
    """You call `backward` on the parents, and it begins by setting their gradient to 1. Only the
    result begins with 1.
    """

    def backward(self):
        self.grad = 1.0
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent.grad += slope * self.grad
            parent.backward()


class Number__hands_on_the_sum_so_far(_Number):
    """Each time a gradient arrives you pass on the whole sum so far, and so its first part again:
    wait until it is complete.
    """

    def backward(self):
        self.grad = 1.0
        self._walk()

    def _walk(self):
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent.grad += slope * self.grad
            parent._walk()


class Number__runs_twice(_Number):
    """A Number used twice goes on your stack twice, and passes its gradient on twice: put it there
    only if it is new.
    """

    def backward(self):
        self.grad, stack = 1.0, [self]
        while stack:
            number = stack.pop()
            number._hand_on()
            stack.extend(number.parents)


class Number__queues_twice(_Number):
    """A Number used twice goes into your queue twice, and passes its gradient on twice: put it
    there only if it is new.
    """

    def backward(self):
        self.grad, queue = 1.0, [self]
        while queue:
            number = queue.pop(0)
            number._hand_on()
            queue.extend(number.parents)


class Number__forgets_what_arrived(_Number):
    """You pass on the slope alone; pass on the slope times what has arrived at the Number itself
    (its `grad`).
    """

    def _hand_on(self):
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent.grad += slope


class Number__forgets_the_slope(_Number):
    """Your products pass on their gradient as it is, as a sum would; a factor receives it times the
    other factor.
    """

    def _hand_on(self):
        for parent in self.parents:
            parent.grad += self.grad


class Number__adds_slope_and_gradient(_Number):
    """You add slope and gradient; along a path they multiply."""

    def _hand_on(self):
        for parent, slope in zip(self.parents, self.slopes, strict=True):
            parent.grad += slope + self.grad


class Number__a_parent_once(_Number):
    """If one operation uses a Number twice (a * a), you pass the gradient on only once: go through
    the parents one by one.
    """

    def _hand_on(self):
        for parent, slope in dict(zip(self.parents, self.slopes, strict=True)).items():
            parent.grad += slope * self.grad


class Number__no_start(_Number):
    """All gradients are 0: the result's own gradient has to be 1, and the result is the first to
    pass it on.
    """

    def backward(self):
        for number in self._order():
            number._hand_on()


class Number__starts_with_its_value(_Number):
    """You start with the value of the result; it grows as fast as itself, so its gradient is 1."""

    def backward(self):
        self.grad = self.value
        for number in self._order():
            number._hand_on()
