// A function for a step, which is the module's.
#include "common.hpp"

#include <fulmen/callbacks/lambda_callback.hpp>

auto callback = fulmen::lambda_callback(fulmen::on<fulmen::hooks::training_step>([](auto&, const auto&) {}));
