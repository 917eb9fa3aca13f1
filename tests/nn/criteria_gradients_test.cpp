// Tests nn/criteria.hpp: values and gradients of all criteria against autograd, over shapes, types and
// options; errors too.
#include "gradients.hpp"

#include <fulmen/nn/criteria.hpp>

namespace {

using namespace fulmen;
using gradients_test::difference;
using gradients_test::expect_same;

using Sizes = std::vector<std::int64_t>;

struct Options {
  bool exact = false;    ///< bit for bit
  double tolerance = 0;  ///< 0: by type
  int steps = 3;
  double scale = 1;  ///< the gradient of the loss
};

/// Runs the rule of a criterion as a step would, several times, on the outputs and targets that `make()`
/// gives.
template <std::size_t M = 1, std::size_t T = 1, class C, class Make>
void check(C criterion, Make&& make, Options options = {}) {
  using R = nn::CriterionRule<C, M, T>;
  typename R::Kept kept;
  nn::Workspace workspace;
  std::array<nn::Buffer, M> out;
  for (int step = 0; step < options.steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const std::pair<std::array<at::Tensor, M>, std::array<at::Tensor, T>> given = make();
    const auto& outputs = given.first;
    const auto& targets = given.second;
    std::array<at::Tensor, M> leaves;
    for (std::size_t i = 0; i < M; ++i) {
      leaves[i] = outputs[i].detach().clone(at::MemoryFormat::Preserve);
      if (at::isFloatingType(leaves[i].scalar_type())) leaves[i].requires_grad_(true);
    }
    const at::Tensor expected = nn::detail::apply_n<T>(
        [&](std::size_t i) -> const at::Tensor& { return targets[i]; },
        [&](const auto&... t) {
          if constexpr (M == 1) {
            return at::Tensor(fulmen::detail::call_criterion(criterion, leaves[0], t...));
          } else {
            const auto all = std::tuple_cat(leaves);
            return at::Tensor(fulmen::detail::call_criterion(criterion, all, t...));
          }
        });
    (expected * options.scale).backward();
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      workspace.begin(step > 0);
      nn::LossPass<M, T> pass{{}, {}, workspace};
      for (std::size_t i = 0; i < M; ++i) {
        workspace.hold(out[i], outputs[i]);
        pass.outputs[i] = &out[i];
      }
      for (std::size_t i = 0; i < T; ++i) pass.targets[i] = &targets[i];
      nn::Buffer& loss = R::forward(criterion, kept, pass);
      workspace.keep_apart(loss);
      const at::Tensor found = *loss;
      const double tolerance = options.exact ? 1e-300 : options.tolerance;
      expect_same(found, expected.detach(), tolerance, "the loss");
      // Memory that is not ours any more would be overwritten by this.
      nn::Buffer other;
      workspace.take(other, {64}, found).fill_(123);
      const at::Tensor seed = at::full({}, options.scale, found.options());
      pass.seed = &seed;
      std::array<nn::Buffer*, M> gradients;
      using Result = decltype(R::backward(criterion, kept, pass));
      if constexpr (std::is_same_v<Result, nn::Buffer*>)
        gradients = {R::backward(criterion, kept, pass)};
      else
        gradients = R::backward(criterion, kept, pass);
      for (std::size_t i = 0; i < M; ++i) {
        if (!at::isFloatingType(outputs[i].scalar_type())) continue;
        ASSERT_NE(gradients[i], nullptr);
        expect_same(**gradients[i], leaves[i].grad(), tolerance,
                    "the gradient of output " + std::to_string(i));
      }
      workspace.release(other);
      for (std::size_t i = 0; i < M; ++i) {
        if (gradients[i] != nullptr) workspace.release(*gradients[i]);
        workspace.release(out[i]);
      }
      workspace.release(loss);
      workspace.end();
    }
  }
}

template <std::size_t M, std::size_t T>
using Batch = std::pair<std::array<at::Tensor, M>, std::array<at::Tensor, T>>;

/// Class indices; at::tensor would make 32 bits of these.
at::Tensor longs(at::ArrayRef<std::int64_t> values) { return at::tensor(values, at::kLong); }
at::Tensor longs(std::int64_t value) { return at::full({}, value, at::kLong); }

constexpr std::array reductions{Reduction::mean, Reduction::sum};
constexpr std::array types{at::kFloat, at::kDouble};

/// Criteria with one target of the output's shape.
template <class C, class MakeOutput, class MakeTarget>
void check_elementwise(C criterion, MakeOutput&& output, MakeTarget&& target, Options options = {}) {
  const std::vector<Sizes> shapes{{7, 5}, {6}, {2, 3, 4}, {40, 33}, {}, {1, 1}};
  for (const auto type : types) {
    for (const auto reduction : reductions) {
      criterion.reduction = reduction;
      for (const Sizes& sizes : shapes) {
        SCOPED_TRACE(testing::Message() << C::criterion_name.view() << " " << at::IntArrayRef(sizes) << " "
                                        << type << " reduction " << static_cast<int>(reduction));
        check(
            criterion,
            [&] {
              return Batch<1, 1>{{output(at::randn(sizes, type))}, {target(at::randn(sizes, type))}};
            },
            options);
      }
      Options scaled = options;
      scaled.scale = 0.5;
      check(criterion,
            [&] {
              return Batch<1, 1>{{output(at::randn({4, 3}, type)).t()}, {target(at::randn({3, 4}, type))}};
            },
            {.exact = false, .tolerance = options.tolerance, .scale = 0.5});
      criterion.reduction = Reduction::sum;
      check(
          criterion,
          [&] {
            return Batch<1, 1>{{output(at::randn({0, 3}, type))}, {target(at::randn({0, 3}, type))}};
          },
          scaled);
    }
  }
  criterion.reduction = Reduction::none;
  check(
      criterion,
      [&] {
        return Batch<1, 1>{{output(at::randn({1}))}, {target(at::randn({1}))}};
      },
      options);
  EXPECT_THROW(check(criterion,
                     [&] {
                       return Batch<1, 1>{{output(at::randn({3}))}, {target(at::randn({3}))}};
                     }),
               std::exception);
}

const auto same = [](const at::Tensor& t) { return t; };
const auto positive = [](const at::Tensor& t) { return t.abs() + 0.1; };
const auto probability = [](const at::Tensor& t) { return t.sigmoid(); };
const auto sign = [](const at::Tensor& t) { return (t > 0).to(t.scalar_type()) * 2 - 1; };
const auto counts = [](const at::Tensor& t) { return (t.abs() * 3).floor(); };

TEST(CriteriaGradients, Numbers) {
  torch::manual_seed(1);
  check_elementwise(MSE{}, same, same, {.exact = true});
  check_elementwise(L1{}, same, same, {.exact = true});
  for (const double beta : {1.0, 0.3, 0.0})
    check_elementwise(SmoothL1{.beta = beta}, same, same, {.exact = true});
  for (const double delta : {1.0, 0.3}) check_elementwise(Huber{.delta = delta}, same, same, {.exact = true});
  for (const bool full : {false, true}) {
    check_elementwise(PoissonNLL{.full = full}, same, counts, {.exact = true});
    check_elementwise(PoissonNLL{.log_input = false, .full = full}, positive, counts, {.exact = true});
  }
  check_elementwise(HingeEmbedding{.margin = 0.7}, same, sign, {.exact = true});
  check_elementwise(HingeEmbedding{}, same,
                    [](const at::Tensor& t) { return (t * 1.5).round().clamp(-1, 1); }, {.exact = true});
}

TEST(CriteriaGradients, TypesOfOutputAndTarget) {
  torch::manual_seed(2);
  const auto mixed = [](at::ScalarType output, at::ScalarType target) {
    return [=] { return Batch<1, 1>{{at::rand({4, 3}).to(output)}, {at::rand({4, 3}).to(target)}}; };
  };
  check(L1{}, mixed(at::kBFloat16, at::kFloat));
  check(L1{}, mixed(at::kFloat, at::kDouble));
  check(L1{}, mixed(at::kFloat, at::kLong));
  check(KLDiv{}, mixed(at::kBFloat16, at::kFloat));
  check(BCEWithLogits{}, mixed(at::kBFloat16, at::kFloat));
  check(BCEWithLogits{}, mixed(at::kFloat, at::kDouble));
  check(MSE{}, mixed(at::kBFloat16, at::kBFloat16));
  check(BCEWithLogits{}, mixed(at::kBFloat16, at::kBFloat16));
  EXPECT_ANY_THROW(check(BCEWithLogits{}, mixed(at::kFloat, at::kLong)));
}

TEST(CriteriaGradients, KLDiv) {
  torch::manual_seed(3);
  for (const auto type : types) {
    for (const bool log_target : {false, true}) {
      for (const auto reduction : {KLDivReduction::mean, KLDivReduction::sum, KLDivReduction::batchmean}) {
        for (const Sizes& sizes : std::vector<Sizes>{{4, 6}, {5}, {2, 3, 4}, {}}) {
          check(KLDiv{.reduction = reduction, .log_target = log_target},
                [&] {
                  at::Tensor target = at::randn(sizes, type).sigmoid();
                  if (!log_target && target.dim() > 0) target.select(0, 0).zero_();
                  return Batch<1, 1>{{-at::rand(sizes, type)}, {log_target ? target.log() : target}};
                },
                {.exact = true});
        }
      }
    }
  }
}

TEST(CriteriaGradients, GaussianNLL) {
  torch::manual_seed(4);
  for (const auto type : types) {
    for (const auto reduction : reductions) {
      for (const bool full : {false, true}) {
        for (const Sizes& variance : std::vector<Sizes>{{5, 3}, {5}, {5, 1}, {1, 3}}) {
          const GaussianNLL criterion{.full = full, .eps = 0.2, .reduction = reduction};
          const auto mean = [&] { return at::randn({5, 3}, type); };
          const auto var = [&] { return at::rand(variance, type); };
          check<1, 2>(criterion, [&] { return Batch<1, 2>{{mean()}, {mean(), var()}}; });
          check<2, 1>(criterion, [&] { return Batch<2, 1>{{mean(), var()}, {mean()}}; }, {.scale = 0.5});
        }
      }
    }
  }
  const auto unequal = [] { return Batch<2, 1>{{at::randn({5, 3}), at::rand({4, 3})}, {at::randn({5, 3})}}; };
  EXPECT_THROW((check<2, 1>(GaussianNLL{}, unequal)), std::invalid_argument);
}

TEST(CriteriaGradients, Binary) {
  torch::manual_seed(5);
  check_elementwise(BCE{}, probability, probability, {.exact = true});
  check_elementwise(BCEWithLogits{}, same, probability, {.exact = true});
  check_elementwise(SoftMargin{}, same, sign, {.exact = true});
  for (const auto type : types) {
    for (const auto reduction : reductions) {
      const at::Tensor weight = at::rand({4}, type), pos_weight = at::rand({4}, type) * 3,
                       of_all = at::rand({6, 4}, type);
      const auto batch = [&](auto&& output) {
        return [&, output] {
          return Batch<1, 1>{{output(at::randn({6, 4}, type))}, {at::rand({6, 4}, type)}};
        };
      };
      check(BCE{.weight = weight, .reduction = reduction}, batch(probability), {.exact = true});
      check(BCE{.weight = of_all, .reduction = reduction}, batch(probability), {.exact = true});
      check(BCEWithLogits{.weight = of_all, .reduction = reduction}, batch(same), {.exact = true});
      check(BCEWithLogits{.pos_weight = pos_weight, .reduction = reduction}, batch(same), {.exact = true});
      check(BCEWithLogits{.weight = weight, .pos_weight = pos_weight, .reduction = reduction}, batch(same),
            {.exact = true});
      check(MultiLabelSoftMargin{.reduction = reduction}, batch(same));
      check(MultiLabelSoftMargin{.weight = weight, .reduction = reduction}, batch(same), {.scale = 0.5});
      check(MultiLabelSoftMargin{.reduction = reduction}, [&] {
        return Batch<1, 1>{{at::randn({4}, type)}, {at::rand({4}, type)}};
      });
    }
  }
  EXPECT_ANY_THROW(check(BCE{}, [] { return Batch<1, 1>{{at::randn({6})}, {at::rand({6})}}; }));
}

TEST(CriteriaGradients, Margins) {
  torch::manual_seed(6);
  for (const auto type : types) {
    for (const auto reduction : reductions) {
      const at::Tensor weight = at::rand({4}, type);
      const auto batch = [&] {
        return Batch<1, 1>{{at::randn({6, 4}, type)}, {at::randint(4, {6}, at::kLong)}};
      };
      const auto single = [&] {
        return Batch<1, 1>{{at::randn({4}, type)}, {at::randint(4, {}, at::kLong)}};
      };
      for (const std::int64_t p : {1, 2}) {
        check(MultiMargin{.p = p, .margin = 0.8, .reduction = reduction}, batch, {.exact = true});
        check(MultiMargin{.p = p, .weight = weight, .reduction = reduction}, batch,
              {.exact = true, .scale = 0.5});
        check(MultiMargin{.p = p, .reduction = reduction}, single, {.exact = true});
      }
      const auto labels = [&](const Sizes& sizes) {
        return [&, sizes] {
          at::Tensor target = at::rand(sizes).argsort(std::int64_t{-1}, false);
          target.narrow(-1, 2, 2).fill_(-1);
          return Batch<1, 1>{{at::randn(sizes, type)}, {target}};
        };
      };
      check(MultiLabelMargin{.reduction = reduction}, labels({6, 4}), {.exact = true});
      check(MultiLabelMargin{.reduction = reduction}, labels({4}), {.exact = true});
      for (const double margin : {0.0, 0.3}) {
        check<2, 1>(MarginRanking{.margin = margin, .reduction = reduction},
                    [&] {
                      return Batch<2, 1>{{at::randn({6, 2}, type), at::randn({6, 2}, type)},
                                         {sign(at::randn({6, 2}, type))}};
                    },
                    {.exact = true});
        check<2, 1>(CosineEmbedding{.margin = margin, .reduction = reduction}, [&] {
          return Batch<2, 1>{{at::randn({6, 5}, type), at::randn({6, 5}, type)},
                             {sign(at::randn({6}, type))}};
        });
        check<2, 1>(CosineEmbedding{.margin = margin, .reduction = reduction}, [&] {
          return Batch<2, 1>{{at::randn({5}, type), at::randn({5}, type)}, {sign(at::randn({}, type))}};
        });
      }
    }
  }
  EXPECT_ANY_THROW(check(MultiMargin{.reduction = Reduction::none}, [&] {
    return Batch<1, 1>{{at::randn({6, 4})}, {at::randint(4, {6}, at::kLong)}};
  }));
}

TEST(CriteriaGradients, Triplets) {
  torch::manual_seed(7);
  for (const auto type : types) {
    for (const auto reduction : reductions) {
      for (const bool swap : {false, true}) {
        for (const double p : {2.0, 1.0, 3.0}) {
          for (const Sizes& sizes : std::vector<Sizes>{{6, 5}, {5}}) {
            const auto batch = [&] {
              return Batch<3, 0>{{at::randn(sizes, type), at::randn(sizes, type), at::randn(sizes, type)},
                                 {}};
            };
            check<3, 0>(TripletMargin{.margin = 0.5, .p = p, .swap = swap, .reduction = reduction}, batch);
            check<3, 0>(TripletMarginWithDistance<>{.margin = 0.5, .swap = swap, .reduction = reduction},
                        batch);
          }
        }
      }
    }
  }
  const auto broadcast = [] {
    return Batch<3, 0>{{at::randn({6, 5}), at::randn({1, 5}), at::randn({6, 5})}, {}};
  };
  check<3, 0>(TripletMargin{}, broadcast);
  EXPECT_THROW((check<3, 0>(TripletMargin{.margin = 0}, broadcast)), std::invalid_argument);
}

TEST(CriteriaGradients, ClassIndices) {
  torch::manual_seed(8);
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const auto reduction : reductions) {
      for (const bool weighted : {false, true}) {
        for (const std::int64_t ignore : {-100, 1}) {
          for (const Sizes& sizes : std::vector<Sizes>{
                   {6, 4}, {4}, {300, 100}, {2, 70}, {3, 4, 5}, {2, 4, 3, 5}, {2, 3, 2, 2, 2}, {1, 2}}) {
            SCOPED_TRACE(testing::Message() << at::IntArrayRef(sizes) << " " << type << " "
                                            << static_cast<int>(reduction) << " weight " << weighted);
            const std::int64_t classes = sizes.size() == 1 ? sizes[0] : sizes[1];
            const at::Tensor weight = weighted ? at::rand({classes}, type) + 0.5 : at::Tensor();
            Sizes of_target = sizes;
            of_target.erase(of_target.begin() + (sizes.size() > 1));
            const auto batch = [&] {
              at::Tensor target = at::randint(classes, of_target, at::kLong);
              if (target.dim() > 0)
                target.flatten()[0] = 0;  // not all of them ignored
              else
                target.fill_(0);
              return Batch<1, 1>{{at::randn(sizes, type)}, {target}};
            };
            const auto transposed = [&] {
              auto b = batch();
              b.first[0] = b.first[0].transpose(0, -1).contiguous().transpose(0, -1);
              return b;
            };
            for (const double smoothing : {0.0, 0.1, 1.0}) {
              const CrossEntropy criterion{.weight = weight,
                                           .reduction = reduction,
                                           .ignore_index = ignore,
                                           .label_smoothing = smoothing};
              // 1 - p loses what p, near 1, does not have: in autograd's kernels as in ours.
              const double tolerance = type == at::kFloat ? 1e-5 : 0;
              check(criterion, batch, {.tolerance = tolerance, .scale = 0.5});
              if (smoothing < 1) check(criterion, transposed, {.tolerance = tolerance});
            }
            // Sums of bfloat16 go through other orders where the tensor is not contiguous.
            check(NLL{.weight = weight, .reduction = reduction, .ignore_index = ignore}, batch,
                  {.exact = true});
            // Autograd itself refuses images that are not contiguous.
            if (sizes.size() != 4)
              check(NLL{.weight = weight, .reduction = reduction, .ignore_index = ignore}, transposed);
          }
        }
      }
    }
  }
}

TEST(CriteriaGradients, ClassProbabilities) {
  torch::manual_seed(9);
  for (const auto type : types) {
    for (const auto reduction : reductions) {
      for (const bool weighted : {false, true}) {
        for (const double smoothing : {0.0, 0.1}) {
          for (const Sizes& sizes : std::vector<Sizes>{{6, 4}, {4}, {3, 4, 5}, {2, 3, 2, 2, 2}}) {
            const at::Tensor weight =
                weighted ? at::rand({sizes.size() == 1 ? sizes[0] : sizes[1]}, type) + 0.5 : at::Tensor();
            check(CrossEntropy{.weight = weight, .reduction = reduction, .label_smoothing = smoothing},
                  [&] {
                    return Batch<1, 1>{{at::randn(sizes, type)},
                                       {at::randn(sizes, type).softmax(sizes.size() == 1 ? 0 : 1)}};
                  },
                  {.scale = 0.5});
          }
        }
      }
    }
  }
}

TEST(CriteriaGradients, LargeLogits) {
  for (const auto type : types) {
    const at::Tensor target = longs({0, 1, 2, 1});
    check(CrossEntropy{}, [&] {
      at::Tensor logits = at::randn({4, 3}, type) * 1000;
      logits[1][0] = -std::numeric_limits<double>::infinity();
      return Batch<1, 1>{{logits}, {target}};
    });
  }
  // Whatever is not a number stays so.
  nn::CriterionRule<CrossEntropy>::Kept kept;
  nn::Workspace workspace;
  nn::Buffer out;
  const at::AutoDispatchBelowADInplaceOrView below;
  workspace.begin(false);
  at::Tensor logits = at::randn({2, 3});
  logits[1][2] = std::nan("");
  const at::Tensor target = longs({0, 1}), seed = at::ones({});
  workspace.hold(out, logits);
  nn::LossPass<> pass{{&out}, {&target}, workspace, &seed};
  EXPECT_TRUE(std::isnan(nn::CriterionRule<CrossEntropy>::forward({}, kept, pass)->item<float>()));
  const at::Tensor gradient = **nn::CriterionRule<CrossEntropy>::backward({}, kept, pass);
  EXPECT_FALSE(gradient[0].isnan().any().item<bool>());
  EXPECT_TRUE(gradient[1].isnan().all().item<bool>());
}

/// What a call throws.
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

template <class C>
void expect_same_error(const C& criterion, const at::Tensor& output, const at::Tensor& target) {
  const std::string expected = message_of([&] { static_cast<void>(criterion(output, target)); });
  EXPECT_FALSE(expected.empty());
  const std::string found = message_of([&] {
    typename nn::CriterionRule<C>::Kept kept;
    nn::Workspace workspace;
    nn::Buffer out;
    const at::AutoDispatchBelowADInplaceOrView below;
    workspace.begin(false);
    workspace.hold(out, output);
    static_cast<void>(nn::CriterionRule<C>::forward(criterion, kept, {{&out}, {&target}, workspace}));
  });
  EXPECT_EQ(found, expected);
}

TEST(CriteriaGradients, Errors) {
  const at::Tensor logits = at::randn({3, 4});
  for (const at::Tensor& target :
       {longs({0, 4, 1}), longs({0, -1, 1}), longs({0, 1}), at::zeros({3, 1}, at::kLong),
        at::zeros({}, at::kLong), at::zeros({3}), at::zeros({3, 4}, at::kLong)}) {
    SCOPED_TRACE(testing::Message() << target.sizes() << " " << target.scalar_type());
    expect_same_error(CrossEntropy{}, logits, target);
    expect_same_error(CrossEntropy{.label_smoothing = 0.1}, logits, target);
    if (target.dim() < 2) expect_same_error(NLL{}, logits, target);
  }
  const at::Tensor target = longs({0, 1, 2});
  expect_same_error(CrossEntropy{.weight = at::ones({3})}, logits, target);
  expect_same_error(CrossEntropy{.label_smoothing = 1.5}, logits, target);
  expect_same_error(CrossEntropy{}, at::randn({3, 4, 2}), at::zeros({3, 3}, at::kLong));
  expect_same_error(CrossEntropy{}, at::randn({3, 4, 2, 2}), at::zeros({3, 2, 3}, at::kLong));
  expect_same_error(CrossEntropy{}, at::randn({}), at::zeros({}, at::kLong));
  expect_same_error(CrossEntropy{.ignore_index = 1}, logits, at::rand({3, 4}));
  expect_same_error(MSE{}, at::randn({3, 1}), at::randn({3}));
  expect_same_error(BCEWithLogits{}, at::randn({3, 1}), at::randn({3}));
  expect_same_error(KLDiv{}, at::randn({3, 1}), at::randn({3}));
  expect_same_error(MultiMargin{}, logits, longs({0, 1}));
  expect_same_error(MultiLabelMargin{}, logits, at::zeros({3, 3}, at::kLong));
  expect_same_error(MultiLabelSoftMargin{}, logits, at::rand({3}));
}

TEST(CriteriaGradients, NeedsAScalar) {
  const std::string message = message_of([] {
    nn::CriterionRule<CrossEntropy>::Kept kept;
    nn::Workspace workspace;
    nn::Buffer out;
    const at::AutoDispatchBelowADInplaceOrView below;
    workspace.begin(false);
    const at::Tensor logits = at::randn({3, 4}), target = longs({0, 1, 2}), seed = at::ones({});
    workspace.hold(out, logits);
    const nn::LossPass<> pass{{&out}, {&target}, workspace, &seed};
    const CrossEntropy criterion{.reduction = Reduction::none};
    expect_same(*nn::CriterionRule<CrossEntropy>::forward(criterion, kept, pass), criterion(logits, target),
                0, "the losses");
    static_cast<void>(nn::CriterionRule<CrossEntropy>::backward(criterion, kept, pass));
  });
  EXPECT_EQ(message,
            "CrossEntropy: the loss has shape [3], as its reduction is none; expected a scalar to go back "
            "from (mean or sum)");
}

TEST(CriteriaGradients, Ctc) {
  torch::manual_seed(10);
  for (const auto type : types) {
    for (const auto reduction : reductions) {
      for (const bool zero_infinity : {false, true}) {
        const CTC criterion{.reduction = reduction, .zero_infinity = zero_infinity};
        const at::Tensor inputs = longs({7, 5, 6}), lengths = longs({3, zero_infinity ? 4 : 2, 1});
        const auto labels = [&] {
          at::Tensor out = at::randint(1, 5, {3, 4}, at::kLong);
          if (zero_infinity) out[1].fill_(2);  // four in a row need seven steps
          return out;
        };
        const auto log_p = [&] { return at::randn({7, 3, 5}, type).log_softmax(-1); };
        check<1, 3>(criterion,
                    [&] {
                      return Batch<1, 3>{{log_p()}, {labels(), inputs, lengths}};
                    },
                    {.exact = true});
        check<2, 2>(criterion,
                    [&] {
                      return Batch<2, 2>{{log_p(), inputs.to(at::kInt)}, {labels(), lengths}};
                    },
                    {.scale = 0.5});
        check<1, 3>(criterion, [&] {
          return Batch<1, 3>{{at::randn({7, 5}, type).log_softmax(-1)}, {longs({1, 2}), longs(7), longs(2)}};
        });
      }
    }
  }
}

TEST(CriteriaGradients, Sums) {
  torch::manual_seed(11);
  const auto batch = [] { return Batch<1, 1>{{at::rand({5, 4})}, {at::rand({5, 4})}}; };
  check(MSE{} + 0.5 * L1{}, batch, {.exact = true});
  check(0.3 * MSE{} + 0.5 * L1{} + 2 * Huber{}, batch, {.scale = 0.5});
  check(
      part<"own">([](const at::Tensor& y, const at::Tensor& t) { return (y * t).sum(); }) + 0.5 * SmoothL1{},
      batch);
  const auto several = [] {
    return Batch<2, 2>{{at::randn({5, 4}), at::randn({5, 2})},
                       {at::randint(4, {5}, at::kLong), at::randn({5, 2})}};
  };
  check<2, 2>(part<"class">(CrossEntropy{}).of<0>() + 0.7 * part<"box">(SmoothL1{}).of<1>(), several);
  check<2, 2>(part<"class">(CrossEntropy{}).of<0>() + 0.7 * part<"box">(SmoothL1{}).of<1>() +
                  part<"far">(L1{}).of<1>(),
              several);

  auto sum = MSE{} + 0.5 * L1{};
  nn::CriterionRule<decltype(sum)>::Kept kept;
  nn::Workspace workspace;
  nn::Buffer out;
  const at::AutoDispatchBelowADInplaceOrView below;
  for (int step = 0; step < 3; ++step) {
    const at::Tensor output = at::randn({3}), target = at::randn({3}), seed = at::ones({});
    workspace.begin(step > 0);
    workspace.hold(out, output);
    const nn::LossPass<> pass{{&out}, {&target}, workspace, &seed};
    nn::Buffer& loss = nn::CriterionRule<decltype(sum)>::forward(sum, kept, pass);
    const std::array<at::Tensor, 2> values{*kept.values[0], *kept.values[1]};
    const at::Tensor total = *loss;
    const auto gradients = nn::CriterionRule<decltype(sum)>::backward(sum, kept, pass);
    workspace.release(*gradients[0]);
    workspace.release(loss);
    workspace.end();
    EXPECT_TRUE(values[0].equal(MSE{}(output, target)));
    EXPECT_TRUE(values[1].equal(L1{}(output, target)));
  }
}

TEST(CriteriaGradients, InAStep) {
  nn::Sequential net{torch::nn::Linear(6, 5), torch::nn::Linear(5, 4)};
  auto criterion = CrossEntropy{} + 0.1 * part<"even">(CrossEntropy{.label_smoothing = 1});
  std::int64_t batch = 4;
  gradients_test::check_step(
      net, criterion,
      [&] {
        batch = batch == 4 ? 3 : 4;
        return std::pair(std::array{at::randn({batch, 6})}, std::array{at::randint(4, {batch}, at::kLong)});
      },
      {.steps = 6, .accumulate = true});
}

}  // namespace
