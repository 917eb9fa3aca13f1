// The rules of all criteria that have a name.
#pragma once

#include <fulmen/nn/classification.hpp>
#include <fulmen/nn/criterion_rule.hpp>
#include <fulmen/nn/ctc.hpp>
#include <fulmen/nn/distance.hpp>
#include <fulmen/nn/regression.hpp>
#include <fulmen/nn/sum.hpp>
