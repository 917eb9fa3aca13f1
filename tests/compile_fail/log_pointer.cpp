// A name made at run time, as a pointer, where a literal is expected.
#include "common.hpp"

void run(fulmen::Context& ctx, const char* name) { ctx.log(name, 1.0, {.prog_bar = true}); }
