// A program that compiles: the test of what must not compile has to fail on it.
static_assert(sizeof(int) > 0);
