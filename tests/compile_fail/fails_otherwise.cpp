static_assert(sizeof(int) == 0, "this message is another");
