// Tests nn/combinators.hpp: what they give, names and copies, and gradients against autograd in nestings of
// many kinds.
#include "gradients.hpp"

#include "../testing.hpp"

#include <fulmen/nn/activation.hpp>
#include <fulmen/nn/combinators.hpp>
#include <fulmen/nn/linear.hpp>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace fulmen;
using gradients_test::Check;
using gradients_test::check_layer;
using gradients_test::check_step;
using nn::Branch;
using nn::Concat;
using nn::Linear;
using nn::Parallel;
using nn::ReLU;
using nn::repeat;
using nn::Residual;
using nn::Sequential;
using nn::Sum;
using torch::nn::LinearOptions;

/// A view both ways, whose rule says so: what comes out is memory of what goes in.
struct Turn : torch::nn::Cloneable<Turn> {
  void reset() override {}
  at::Tensor forward(const at::Tensor& x) { return x.transpose(0, 1); }
};
/// Autograd serves it.
const auto squash = [](const at::Tensor& x) { return at::tanh(x) * x; };
const auto same = [](const at::Tensor& x) { return x; };

struct Squares {
  at::Tensor operator()(const at::Tensor& y, const at::Tensor& target) const {
    return (y - target).square().mean();
  }
};

}  // namespace

template <>
struct fulmen::nn::Rule<Turn> {
  struct Kept {
    Buffer output, gradient;
  };
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;
  static Buffer& forward(Turn&, Kept& kept, const ForwardPass<>& pass) {
    pass.workspace.view(kept.output, *pass.inputs[0], [](const at::Tensor& t) { return t.transpose(0, 1); });
    return kept.output;
  }
  static Buffer* backward(Turn&, Kept& kept, const BackwardPass<>& pass) {
    pass.workspace.view(kept.gradient, *pass.gradients[0],
                        [](const at::Tensor& t) { return t.transpose(0, 1); });
    return &kept.gradient;
  }
};

namespace {

/// A net whose type is forgotten, so that the checks are compiled once for all nets and not once for each.
struct Net : torch::nn::Module {
  template <class Layer>
  explicit Net(Layer layer) {
    auto net = register_module("net", std::make_shared<Layer>(std::move(layer)));
    using R = nn::Rule<Layer>;
    static_assert(nn::detail::output_count<R>() == 1);
    call = [net](const at::Tensor& x) { return at::Tensor(net->forward(x)); };
    prepare = [net] {
      auto kept = std::make_shared<typename R::Kept>();
      nn::detail::rule_prepare<R>(*net, *kept);
      return kept;
    };
    rule_forward = [net](void* kept, const nn::ForwardPass<>& pass) {
      return nn::detail::rule_forward<R>(*net, *static_cast<typename R::Kept*>(kept), pass)[0];
    };
    rule_backward = [net](void* kept, const nn::BackwardPass<>& pass) {
      return nn::detail::rule_backward<R>(*net, *static_cast<typename R::Kept*>(kept), pass)[0];
    };
  }
  at::Tensor forward(const at::Tensor& x) { return call(x); }

  std::function<at::Tensor(const at::Tensor&)> call;
  std::function<std::shared_ptr<void>()> prepare;
  std::function<nn::Buffer*(void*, const nn::ForwardPass<>&)> rule_forward;
  std::function<nn::Buffer*(void*, const nn::BackwardPass<>&)> rule_backward;
};

}  // namespace

template <>
struct fulmen::nn::Rule<Net> {
  struct Kept {
    std::shared_ptr<void> of_net;
  };
  static constexpr bool saves_input = true, saves_output = true, owns_output = false;
  static void prepare(Net& net, Kept& kept) { kept.of_net = net.prepare(); }
  static Buffer& forward(Net& net, Kept& kept, const ForwardPass<>& pass) {
    return *net.rule_forward(kept.of_net.get(), pass);
  }
  static Buffer* backward(Net& net, Kept& kept, const BackwardPass<>& pass) {
    return net.rule_backward(kept.of_net.get(), pass);
  }
};

namespace {

std::int64_t random(std::int64_t low, std::int64_t high) {
  static std::mt19937 generator(8);
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}

/// Freezes some of the parameters, or none.
void freeze_some(torch::nn::Module& net) {
  const std::int64_t every = random(0, 3);
  std::int64_t i = 0;
  for (at::Tensor& p : net.parameters()) p.requires_grad_(every == 0 || i++ % (every + 1) != 0);
}

/// A net for rows of this width, as a layer: types, batches, inputs not contiguous, gradients wanted or not,
/// parts frozen.
/// @param square as many rows as columns
void check_rule_of(Net net, std::int64_t width, bool square) {
  for (const auto type : {at::kFloat, at::kDouble}) {
    net.to(type);
    for (int variant = 0; variant < 6; ++variant) {
      SCOPED_TRACE(testing::Message() << "variant " << variant << " of " << type);
      const std::int64_t batch = square ? width : random(1, 5);
      for (at::Tensor& p : net.parameters()) p.requires_grad_(true);
      if (variant > 3) freeze_some(net);
      check_layer<1>(
          net,
          [&] {
            return std::array{variant == 3 ? at::randn({width, batch}, type).t()
                                           : at::randn({batch, width}, type)};
          },
          Check{.steps = 4, .wants_input = variant != 1, .accumulate = variant == 2});
    }
  }
}

template <class Layer>
void check_net(Layer layer, std::int64_t width, bool square = false) {
  check_rule_of(Net(std::move(layer)), width, square);
}

TEST(Combinators, Forward) {
  const at::Tensor x = at::randn({3, 4}), y = at::randn({3, 4});
  Linear a(4, 4), b(4, 4);
  EXPECT_TRUE(Residual(a, ReLU())(x).equal(x + at::relu(a->forward(x))));
  EXPECT_TRUE(std::get<1>(Branch(a, same, b)(x)).equal(x));
  EXPECT_TRUE(std::get<1>(Parallel(a, b)(x, y)).equal(b->forward(y)));
  EXPECT_TRUE(Sum(a, same, b)(x).equal(a->forward(x) + x + b->forward(x)));
  EXPECT_TRUE((Concat{-1, a, same})(x).equal(at::cat({a->forward(x), x}, 1)));
  EXPECT_TRUE((Sequential{Branch(a, b), nn::Multiply()})(x).equal(a->forward(x) * b->forward(x)));
  EXPECT_TRUE((Sequential{Branch(a, b), Parallel(b, a), nn::Cat(0)})(x).equal(
      at::cat({b->forward(a->forward(x)), a->forward(b->forward(x))}, 0)));
  EXPECT_TRUE((Sequential{Parallel(a, b), nn::Add()})(x, y).equal(a->forward(x) + b->forward(y)));
  // A Residual in a Residual is not a copy of it.
  EXPECT_TRUE((Residual{Residual{a}})(x).equal(x + (x + a->forward(x))));
  auto three =
      repeat<3>([](std::size_t i) { return Linear(4 + static_cast<int>(i), 5 + static_cast<int>(i)); });
  EXPECT_EQ(three(x).sizes(), (at::IntArrayRef{3, 7}));
  static_assert(
      !std::is_invocable_v<Parallel<torch::nn::LinearImpl, torch::nn::LinearImpl>&, const at::Tensor&>);
  static_assert(!std::is_invocable_v<Residual<nn::Add>&, const at::Tensor&>);
}

TEST(Combinators, NamesAndCopies) {
  auto net = std::make_shared<decltype(Sum{nn::named<"skip">(Linear(4, 3)), Residual{Linear(4, 4)},
                                           repeat<2>(Linear(4, 4)), Concat{1, Linear(4, 3)}})>(
      nn::named<"skip">(Linear(4, 3)), Residual{Linear(4, 4)}, repeat<2>(Linear(4, 4)),
      Concat{1, Linear(4, 3)});
  EXPECT_EQ(net->named_parameters().keys(),
            (std::vector<std::string>{"skip.weight", "skip.bias", "1.0.weight", "1.0.bias", "2.0.weight",
                                      "2.0.bias", "2.1.weight", "2.1.bias", "3.0.weight", "3.0.bias"}));
  EXPECT_TRUE(net->get<2>().at(0).weight.equal(net->get<2>().at(1).weight))
      << "copies begin with the same values";
  EXPECT_FALSE(net->get<2>().at(0).weight.is_same(net->get<2>().at(1).weight));

  auto branch = Branch(nn::named<"a">(Linear(4, 4)), Residual{Linear(4, 4)}, repeat<2>(Linear(4, 4)),
                       Concat{1, Linear(4, 3), same}, nn::Cat(1));
  auto copy = std::static_pointer_cast<decltype(branch)>(branch.clone());
  ASSERT_EQ(copy->named_parameters().keys(), branch.named_parameters().keys());
  for (const auto& item : copy->named_parameters()) {
    EXPECT_TRUE(item.value().equal(branch.named_parameters()[item.key()]));
    EXPECT_FALSE(item.value().is_same(branch.named_parameters()[item.key()])) << item.key();
  }
  EXPECT_EQ(copy->get<"a">().weight.data_ptr(), copy->named_parameters()["a.weight"].data_ptr())
      << "what is called is what is registered";
  EXPECT_EQ(copy->get<3>().dim(), 1);
  branch.eval();
  EXPECT_FALSE(branch.get<1>().get<0>().is_training());
  // In a net of a Cloneable, whose reset() makes it anew.
  struct Holder : torch::nn::Cloneable<Holder> {
    using Net = decltype(Sequential{Residual{Linear(2, 2)}, repeat<2>(Linear(2, 2)),
                                    Concat{1, Linear(2, 2), Linear(2, 1)}});
    std::shared_ptr<Net> net;
    Holder() { reset(); }
    void reset() override {
      net = register_module("net", std::make_shared<Net>(Residual{Linear(2, 2)}, repeat<2>(Linear(2, 2)),
                                                         Concat{1, Linear(2, 2), Linear(2, 1)}));
    }
  };
  Holder holder;
  const auto held = std::static_pointer_cast<Holder>(holder.clone());
  const at::Tensor x = at::randn({3, 2});
  EXPECT_TRUE(held->net->forward(x).equal(holder.net->forward(x)));
  EXPECT_FALSE(held->parameters()[0].is_same(holder.parameters()[0]));
  EXPECT_EQ(error_of([] { return repeat<2>(Linear(nullptr)).size(); }),
            "Sequential: layer 0 is a null pointer, expected a module");
}

TEST(CombinatorGradients, Merges) {
  const Check same_bits{.tolerance = 1e-300};
  nn::Add add;
  nn::Multiply multiply;
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const std::vector<std::int64_t> sizes{random(1, 4), random(1, 4), random(1, 4)};
    const auto x = [&] { return at::randn(sizes, type); };
    check_layer<2>(
        add,
        [&] {
          return std::array{x(), x()};
        },
        same_bits);
    check_layer<3>(add, [&] {
      return std::array{x(), x(), x().transpose(0, 1).contiguous().transpose(0, 1)};
    });
    check_layer<2>(
        multiply,
        [&] {
          return std::array{x(), x()};
        },
        same_bits);
    check_layer<4>(
        multiply,
        [&] {
          return std::array{x(), x(), x(), x()};
        },
        same_bits);
    for (std::int64_t dim = -3; dim < 3; ++dim) {
      nn::Cat cat(dim);
      check_layer<3>(
          cat,
          [&] {
            std::vector<std::int64_t> other = sizes;
            other[static_cast<std::size_t>(dim + 3) % 3] = 3;
            return std::array{x(), at::randn(other, type), x()};
          },
          same_bits);
    }
  }
  // Broadcast, and of two types.
  check_layer<3>(add, [] { return std::array{at::randn({2, 1}), at::randn({2, 3}), at::randn({3})}; });
  check_layer<3>(multiply, [] { return std::array{at::randn({2, 1}), at::randn({2, 3}), at::randn({3})}; });
  check_layer<2>(add, [] { return std::array{at::randn({2, 3}), at::randn({2, 3}, at::kDouble)}; });
  check_layer<2>(multiply, [] { return std::array{at::randn({2, 3}), at::randn({2, 3}, at::kDouble)}; });
  nn::Cat cat(0);
  check_layer<2>(cat, [] { return std::array{at::randn({2, 3}), at::randn({2, 3}, at::kDouble)}; });
  check_layer<2>(cat, [] { return std::array{at::randn({2, 3}), at::randn({0})}; });
  check_layer<2>(cat, [] { return std::array{at::randn({2, 0}), at::randn({1, 0})}; });
}

TEST(CombinatorGradients, Residual) {
  for (int k = 0; k < 2; ++k) {
    const std::int64_t n = random(1, 6);
    check_net(Residual{Linear(n, 3), ReLU(), Linear(3, n), ReLU()}, n);
    check_net(Residual{Residual{Linear(n, n)}}, n);
    check_net(Residual{Linear(n, 1)}, n);  // broadcast
    check_net(Residual{squash}, n);
    check_net(Residual{same}, n);
  }
}

TEST(CombinatorGradients, BranchesAndSums) {
  for (int k = 0; k < 2; ++k) {
    const std::int64_t n = random(1, 6);
    // Of a branch, all outputs are used, some, or one twice.
    check_net(Sequential{Branch{Linear(n, 3), ReLU(), Branch{Sequential{Linear(n, 2), ReLU()}, same}, squash},
                         nn::Cat(1)},
              n);
    check_net(Sequential{Branch{Linear(n, n), ReLU(), squash},
                         [](const auto& a, const auto&, const auto& c) { return a * c + a; }},
              n);
    check_net(Sum{Linear(n, n), ReLU(), Sequential{Linear(n, n), ReLU()}, same, squash}, n);
    check_net(Sum{Linear(n, 1), Linear(n, n), Linear(n, 1)}, n);
    check_net(Sequential{Branch{same, ReLU(), Linear(n, n)},
                         Parallel{Linear(n, n), ReLU(), Sequential{ReLU(), Linear(n, n)}},
                         Sum{nn::Add(), nn::Multiply(), Sequential{nn::Cat(1), Linear(3 * n, n)}}},
              n);
    for (const int dim : {0, -1})
      check_net(Concat{dim, Linear(n, n), ReLU(), same, Sequential{Linear(n, n), ReLU()}}, n);
  }
}

// Bit for bit, where each branch uses its input once: what a branch adds to a gradient is summed up before
// the branches are.
TEST(CombinatorGradients, SumsAreInAutogradsOrder) {
  const auto tanh = [](const at::Tensor& x) { return at::tanh(x); };
  Net net(Sum{tanh, ReLU(), Concat{0, Sequential{ReLU(), tanh}}, Sequential{tanh, Residual{tanh}}});
  check_layer<1>(net, [] { return std::array{at::randn({50, 7})}; }, {.tolerance = 1e-300});
}

TEST(CombinatorGradients, Repeat) {
  check_net(repeat<4>(Linear(3, 3)), 3);
  check_net(repeat<3>([] { return Residual{Linear(4, 5), ReLU(), Linear(5, 4)}; }), 4);
  check_net(repeat<2>(ReLU()), 4);
  check_net(Sequential{Branch{same, ReLU()}, repeat<3>([] {
                         return Parallel{Linear(4, 4), Sequential{ReLU(), Linear(4, 4)}};
                       }),
                       nn::Add()},
            4);
}

TEST(CombinatorGradients, NestedNets) {
  Squares criterion;
  for (int k = 0; k < 4; ++k) {
    SCOPED_TRACE(k);
    const std::int64_t n = random(2, 6), m = random(2, 6), classes = random(2, 5);
    Sequential net{Linear(n, m),
                   Residual{Linear(m, 2 * m), ReLU(), repeat<2>(Residual{Linear(2 * m, 2 * m), ReLU()}),
                            Linear(2 * m, m)},
                   Branch{Linear(m, m), Sum{ReLU(), Linear(m, m), Sequential{Linear(m, m), ReLU()}},
                          Sequential{Linear(m, m), squash}},
                   Parallel{ReLU(), Residual{Linear(m, m)}, same},
                   nn::Multiply(),
                   Concat{1, Linear(m, 3), Residual{ReLU(), Linear(m, m)}, same},
                   Linear(2 * m + 3, classes)};
    for (int frozen = 0; frozen < 3; ++frozen) {
      for (at::Tensor& p : net.parameters()) p.requires_grad_(true);
      if (frozen > 0) freeze_some(net);
      std::int64_t batch = 4;
      check_step(
          net, criterion,
          [&] {
            batch = batch == 4 ? 3 : 4;
            return std::pair(std::array{at::randn({batch, n})}, std::array{at::randn({batch, classes})});
          },
          {.tolerance = 2e-5, .steps = 6, .accumulate = frozen == 1});
      // Whole branches.
      for (at::Tensor& p : net.get<2>().get<1>().parameters()) p.requires_grad_(false);
      for (at::Tensor& p : net.get<0>().parameters()) p.requires_grad_(false);
    }
  }
}

TEST(CombinatorGradients, SharedWeights) {
  const Linear twice(4, 4);
  const auto block = std::make_shared<decltype(Residual{Linear(4, 4), ReLU()})>(Linear(4, 4), ReLU());
  Sequential net{twice, ReLU(), Sum{twice, block}, block, Concat{1, twice, twice}};
  Squares criterion;
  nn::ComposedStep<decltype(net), Squares> step(net, criterion);
  const std::vector<at::Tensor> parameters{twice->weight, twice->bias, block->get<0>().weight,
                                           block->get<0>().bias};
  for (int k = 0; k < 4; ++k) {
    const at::Tensor x = at::randn({5, 4}), target = at::randn({5, 8});
    criterion(net.forward(x), target).backward();
    std::vector<at::Tensor> expected;
    for (const at::Tensor& p : parameters) expected.push_back(std::exchange(p.mutable_grad(), at::Tensor()));
    step.forward({&x}, {&target});
    step.loss();
    step.backward();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      gradients_test::expect_same(std::exchange(parameters[i].mutable_grad(), at::Tensor()), expected[i],
                                  1e-5, std::to_string(i));
    }
  }
}

TEST(CombinatorGradients, AnEmptyBatch) {
  Net sum(Sum{Residual{Linear(3, 3)}, ReLU(), Concat{1, Linear(3, 2), Linear(3, 1)}});
  check_layer<1>(sum, [] { return std::array{at::randn({0, 3})}; });
}

TEST(CombinatorGradients, ShapesThatDoNotFit) {
  Sequential net{Branch{Linear(3, 2), Linear(3, 4)}, nn::Add()};
  Squares criterion;
  nn::ComposedStep<decltype(net), Squares> step(net, criterion);
  const at::Tensor x = at::randn({2, 3}), y = at::zeros({2, 2});
  EXPECT_THROW(step.forward({&x}, {&y}), c10::Error);
  Concat concat{0, Linear(3, 2), Linear(3, 4)};
  nn::ComposedStep<decltype(concat), Squares> joined(concat, criterion);
  EXPECT_THROW(joined.forward({&x}, {&y}), c10::Error);
}

// The chain has to know whether a gradient that a layer gives is memory of the one it was given, which others
// may need.
TEST(CombinatorGradients, ViewsOfGradientsThatAreShared) {
  check_net(Residual{Turn(), ReLU(), Turn()}, 3);
  check_net(Sum{Sequential{ReLU(), Turn(), Turn()}, Turn(), Sequential{ReLU(), Turn()}}, 3, true);
  check_net(Sequential{Branch{Turn(), ReLU(), Turn()}, nn::Add()}, 3, true);
  check_net(repeat<3>(Residual{ReLU(), Turn()}), 3, true);
  // What has no gradient, with a view and without.
  const auto none = [](const at::Tensor& x) { return at::zeros_like(x); };
  check_net(Residual{ReLU(), Sum{Turn(), none}}, 3, true);
  check_net(Residual{ReLU(), Concat{0, Turn()}}, 3, true);
  check_net(Residual{ReLU(), Residual{none}}, 3);
}

}  // namespace
