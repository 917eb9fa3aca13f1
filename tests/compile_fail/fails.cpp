// What a program that must not compile looks like.
static_assert(sizeof(int) == 0, "this message is expected");
