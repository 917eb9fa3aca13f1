// A program that fails with another message than the one expected.
static_assert(sizeof(int) == 0, "this message is another");
