// Tests nn/attention.hpp and nn/recurrent.hpp: against Python's MultiheadAttention (fixtures/nn), and
// gradients against autograd.
#include "gradients.hpp"

#include "../testing.hpp"

#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/nn/attention.hpp>
#include <fulmen/nn/linear.hpp>
#include <fulmen/nn/recurrent.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace fulmen;
using gradients_test::Check;
using gradients_test::check_layer;
using gradients_test::check_step;
using nn::Linear;
using nn::ScaledDotProductAttention;
using nn::SelfAttention;
using nn::Sequential;

struct Squares {
  at::Tensor operator()(const at::Tensor& y, const at::Tensor& target) const {
    return (y - target).square().mean();
  }
};

TEST(SelfAttention, IsPythons) {
  const State cases(checkpoint::read(FULMEN_TEST_DATA_DIR "/nn/attention.pt"));
  for (const char* name : {"plain", "no_bias", "causal"}) {
    SCOPED_TRACE(name);
    const State saved = cases.get<State>(name), options = saved.get<State>("options"),
                gradients = saved.get<State>("gradients");
    torch::manual_seed(7);
    SelfAttention attention({.embed_dim = options.get<std::int64_t>("embed_dim"),
                             .num_heads = options.get<std::int64_t>("num_heads"),
                             .bias = options.get<bool>("bias"),
                             .is_causal = options.get<bool>("is_causal")});
    const State initial = saved.get<State>("initial"), state = saved.get<State>("state");
    EXPECT_EQ(module_state(attention).keys(), initial.keys());
    for (const auto& item : attention.named_parameters()) {
      EXPECT_TRUE(at::allclose(item.value(), initial.get<at::Tensor>(item.key()), 0, 1e-7))
          << "the first value of " << item.key();
    }
    load_module_state(attention, state);
    const at::Tensor x = saved.get<at::Tensor>("input").requires_grad_();
    const at::Tensor y = attention.forward(x);
    EXPECT_LE(gradients_test::difference(y.detach(), saved.get<at::Tensor>("output")), 1e-6);
    y.backward(saved.get<at::Tensor>("seed"));
    EXPECT_LE(gradients_test::difference(x.grad(), gradients.get<at::Tensor>("input")), 2e-6);
    for (const auto& item : attention.named_parameters()) {
      EXPECT_LE(gradients_test::difference(item.value().grad(), gradients.get<at::Tensor>(item.key())), 2e-6)
          << item.key();
    }
  }
}

TEST(SelfAttention, CopiesAndErrors) {
  SelfAttention attention(8, 2);
  const auto copy = std::static_pointer_cast<SelfAttention>(attention.clone());
  const at::Tensor x = at::randn({2, 3, 8});
  EXPECT_TRUE(copy->forward(x).equal(attention.forward(x)));
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor& p : copy->parameters()) p.zero_();
  }
  EXPECT_TRUE(copy->forward(x).equal(at::zeros({2, 3, 8}))) << "forward uses what is registered";
  EXPECT_FALSE(attention.forward(x).equal(at::zeros({2, 3, 8})));
  EXPECT_EQ(error_of([] { SelfAttention(8, 3); }),
            "SelfAttention: embed_dim is 8 and num_heads 3, expected numbers of which the second divides the "
            "first");
  EXPECT_EQ(error_of([] { SelfAttention({.embed_dim = 4, .num_heads = 2, .dropout = 1.5}); }),
            "SelfAttention: dropout is 1.5, expected a probability");
  EXPECT_EQ(error_of([&] {
              attention.forward(at::zeros({3, 8}));
            }),
            "SelfAttention: the input's shape is [3, 8], expected batch×steps×8");
  EXPECT_EQ(error_of([] { ScaledDotProductAttention({.dropout_p = -1}); }),
            "ScaledDotProductAttention: dropout is -1, expected a probability");
}

TEST(AttentionGradients, ScaledDotProduct) {
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (int variant = 0; variant < 6; ++variant) {
      SCOPED_TRACE(testing::Message() << "variant " << variant << " of " << type);
      ScaledDotProductAttention layer({.is_causal = variant == 1,
                                       .dropout_p = variant == 2 ? 0.3 : 0,
                                       .scale = variant == 3 ? std::optional(0.7) : std::nullopt});
      const std::int64_t steps = variant == 0 ? 3 : 7;
      const auto heads = [&](std::int64_t t, std::int64_t d) {
        return variant == 4 ? at::randn({2, t, 3, d}, type).transpose(1, 2) : at::randn({2, 3, t, d}, type);
      };
      // Variant 5: values of another width, for which there is no fused kernel.
      check_layer<3>(
          layer,
          [&] {
            return std::array{heads(5, 4), heads(steps, 4), heads(steps, variant == 5 ? 6 : 4)};
          },
          Check{.tolerance = type == at::kBFloat16 ? 4e-2 : 0});
    }
  }
  // The same kernels as autograd's, on the same numbers: the same bits.
  ScaledDotProductAttention fused;
  check_layer<3>(
      fused,
      [] {
        return std::array{at::randn({2, 3, 9, 8}), at::randn({2, 3, 7, 8}), at::randn({2, 3, 7, 8})};
      },
      {.tolerance = 1e-300});
  ScaledDotProductAttention dropped({.dropout_p = 0.5});
  dropped.eval();
  check_layer<3>(dropped, [] {
    return std::array{at::randn({1, 2, 4, 3}), at::randn({1, 2, 4, 3}), at::randn({1, 2, 4, 3})};
  });
  ScaledDotProductAttention layer;
  check_layer<3>(layer, [] {
    return std::array{at::randn({2, 4, 3}), at::randn({2, 4, 3}), at::randn({2, 4, 3})};
  });
}

TEST(AttentionGradients, SelfAttention) {
  for (const auto type : {at::kFloat, at::kDouble}) {
    for (int variant = 0; variant < 9; ++variant) {
      SCOPED_TRACE(testing::Message() << "variant " << variant << " of " << type);
      SelfAttention layer({.embed_dim = 6,
                           .num_heads = variant == 0 ? 1 : 3,
                           .dropout = variant == 1 ? 0.4 : 0,
                           .bias = variant != 2,
                           .is_causal = variant == 3});
      layer.to(type);
      if (variant == 4) layer.out_proj->weight.requires_grad_(false);
      if (variant >= 5 && variant < 7) layer.in_proj_weight.requires_grad_(false);
      if (variant >= 6 && variant < 8) layer.in_proj_bias.requires_grad_(false);
      // Variant 6: nothing is to be done before out_proj.
      check_layer<1>(
          layer,
          [&] {
            return std::array{variant == 8 ? at::randn({5, 2, 6}, type).transpose(0, 1)
                                           : at::randn({2, 5, 6}, type)};
          },
          Check{.tolerance = type == at::kFloat ? 5e-6 : 0,
                .steps = 4,
                .wants_input = variant != 6 && variant != 7,
                .accumulate = variant == 3});
      layer.eval();
      check_layer<1>(
          layer,
          [&] {
            return std::array{at::randn({1, 1, 6}, type)};
          },
          Check{.tolerance = type == at::kFloat ? 5e-6 : 0});
    }
  }
}

TEST(AttentionGradients, InAChain) {
  Sequential net{Linear(3, 8), SelfAttention({.embed_dim = 8, .num_heads = 2, .is_causal = true}),
                 SelfAttention(8, 4), Linear(8, 2)};
  Squares criterion;
  std::int64_t steps = 4;
  const auto batch = [&] {
    steps = steps == 4 ? 6 : 4;
    return std::pair(std::array{at::randn({2, steps, 3})}, std::array{at::randn({2, steps, 2})});
  };
  check_step(net, criterion, batch, {.tolerance = 1e-5, .steps = 6, .accumulate = true});
  for (at::Tensor& p : net.get<1>().parameters()) p.requires_grad_(false);
  net.get<0>().weight.requires_grad_(false);
  check_step(net, criterion, batch, {.tolerance = 1e-5, .steps = 4});
}

TEST(AttentionGradients, MultiheadAttention) {
  nn::MultiheadAttention layer(nn::MultiheadAttentionOptions(6, 2));
  static_assert(!nn::HasRule<torch::nn::MultiheadAttentionImpl, 3>);
  check_layer<3>(*layer, [] {
    return std::array{at::randn({4, 2, 6}), at::randn({5, 2, 6}), at::randn({5, 2, 6})};
  });
}

TEST(RecurrentGradients, InAChain) {
  Squares criterion;
  for (const bool batch_first : {false, true}) {
    SCOPED_TRACE(batch_first);
    const auto input = [&] { return batch_first ? at::randn({2, 5, 3}) : at::randn({5, 2, 3}); };
    Sequential lstm{Linear(3, 4), nn::LSTM(nn::LSTMOptions(4, 6).num_layers(2).batch_first(batch_first)),
                    nn::LastStep(batch_first), Linear(6, 2)};
    check_step(lstm, criterion,
               [&] {
                 return std::pair(std::array{input()}, std::array{at::randn({2, 2})});
               },
               {.tolerance = 1e-5, .accumulate = batch_first});
    Sequential gru{nn::GRU(nn::GRUOptions(3, 4).batch_first(batch_first)), nn::AllSteps(),
                   nn::RNN(nn::RNNOptions(4, 6).batch_first(batch_first)), nn::LastStep(batch_first),
                   Linear(6, 2)};
    check_step(gru, criterion,
               [&] {
                 return std::pair(std::array{input()}, std::array{at::randn({2, 2})});
               },
               {.tolerance = 1e-5});
  }
  torch::nn::LSTMImpl all(nn::LSTMOptions(3, 4).bidirectional(true));
  check_layer<1>(all, [] { return std::array{at::randn({5, 2, 3})}; }, {.tolerance = 1e-5});
  nn::LastStep last(true);
  check_layer<1>(last, [] { return std::array{at::randn({2, 5, 3}, at::kDouble)}; });
  check_layer<1>(last, [] { return std::array{at::randn({5, 3})}; });
}

}  // namespace
