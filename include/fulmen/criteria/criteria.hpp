// Criteria: named losses with Python's options, and their weighted sums. Any callable `criterion(output,
// targets...) -> loss tensor` serves as well.
#pragma once

#include <fulmen/criteria/classification.hpp>
#include <fulmen/criteria/ctc.hpp>
#include <fulmen/criteria/embedding.hpp>
#include <fulmen/criteria/regression.hpp>
#include <fulmen/criteria/sum.hpp>
