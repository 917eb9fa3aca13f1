// Two functions for one hook.
#include "common.hpp"

#include <fulmen/callbacks/lambda_callback.hpp>

auto callback = fulmen::lambda_callback(fulmen::on<fulmen::hooks::teardown>([] {}),
                                        fulmen::on<fulmen::hooks::teardown>([] {}));
