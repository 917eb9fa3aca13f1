// A value that is neither a number nor a tensor.
#include "common.hpp"

void run(fulmen::Context& ctx) { ctx.log("answer", std::string("42")); }
