// A name made at run time where a literal is expected.
#include "common.hpp"

void run(fulmen::Context& ctx, const std::string& name) { ctx.log(name, 1.0); }
