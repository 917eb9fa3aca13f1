// Layers, their combinators, and the rules by which a training step of them is composed (docs/composed.md).
#pragma once

#include <fulmen/nn/activation.hpp>
#include <fulmen/nn/attention.hpp>
#include <fulmen/nn/chain.hpp>
#include <fulmen/nn/combinators.hpp>
#include <fulmen/nn/composed_step.hpp>
#include <fulmen/nn/convolution.hpp>
#include <fulmen/nn/criteria.hpp>
#include <fulmen/nn/dropout.hpp>
#include <fulmen/nn/embedding.hpp>
#include <fulmen/nn/linear.hpp>
#include <fulmen/nn/normalization.hpp>
#include <fulmen/nn/pooling.hpp>
#include <fulmen/nn/recurrent.hpp>
#include <fulmen/nn/sequential.hpp>
#include <fulmen/nn/shape.hpp>
