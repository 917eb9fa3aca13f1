// Tests loop/hooks.hpp and loop/plan.hpp: who answers a hook, and with how many of its arguments.
#include <fulmen/loop/hooks.hpp>
#include <fulmen/loop/plan.hpp>

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace {

using namespace fulmen;

struct Ctx {
  std::vector<std::string> calls;
};

struct Plain {
  void on_train_start(Ctx& ctx) { ctx.calls.push_back("plain"); }
  void on_fit_end() {}
};
struct Generic {
  void on_train_start(auto& ctx) { ctx.calls.push_back("generic"); }
  void on_train_batch_end(Ctx& ctx, const auto& outputs, const auto& batch) {
    ctx.calls.push_back(outputs + "/" + batch);
  }
};
struct Overloaded {
  void on_train_batch_end(Ctx& ctx) { ctx.calls.push_back("short"); }
  void on_train_batch_end(Ctx& ctx, const std::string&, const std::string&, int) { ctx.calls.push_back("long"); }
};
struct Nothing {};
struct Final final {
  void on_train_start(Ctx& ctx) { ctx.calls.push_back("final"); }
  void on_train_end(auto& ctx) { ctx.calls.push_back("final generic"); }
};
struct Private {
 private:
  [[maybe_unused]] void on_train_start(Ctx&) {}
};
struct Derived : Plain {};
struct NotAFunction {
  int on_train_end = 0;
};

static_assert(answers<hooks::on_train_start, Plain>);
static_assert(answers<hooks::on_train_start, Generic>);
static_assert(answers<hooks::on_train_start, const Plain&>);
static_assert(answers<hooks::on_train_start, Derived>, "a hook may be inherited");
static_assert(answers<hooks::on_train_start, Private>, "found, so that it is an error and not silence");
static_assert(answers<hooks::on_train_end, NotAFunction>, "likewise");
static_assert(answers<hooks::on_train_batch_end, Overloaded>);
static_assert(answers<hooks::on_train_start, Final>);
static_assert(!answers<hooks::on_train_start, Nothing>);
static_assert(!answers<hooks::on_train_end, Plain>);

TEST(Hooks, TakeAnyLeadingPartOfTheArguments) {
  Ctx ctx;
  std::string outputs = "outputs", batch = "batch";
  int batch_idx = 3;
  Generic generic;
  tell<hooks::on_train_batch_end>(generic, ctx, outputs, batch, batch_idx);
  Plain plain;
  tell<hooks::on_fit_end>(plain, ctx);
  tell<hooks::on_train_start>(plain, ctx);
  EXPECT_EQ(ctx.calls, (std::vector<std::string>{"outputs/batch", "plain"}));
}

TEST(Hooks, PreferTheLongestOverload) {
  Ctx ctx;
  std::string outputs, batch;
  int batch_idx = 0;
  Overloaded overloaded;
  tell<hooks::on_train_batch_end>(overloaded, ctx, outputs, batch, batch_idx);
  EXPECT_EQ(ctx.calls, std::vector<std::string>{"long"});
}

TEST(Hooks, AreFoundInFinalClasses) {
  Ctx ctx;
  Final participant;
  tell<hooks::on_train_start>(participant, ctx);
  tell<hooks::on_train_end>(participant, ctx);
  EXPECT_EQ(ctx.calls, (std::vector<std::string>{"final", "final generic"}));
}

TEST(Hooks, ListHasEachNameOnce) {
  std::vector<std::string_view> names;
  [&]<class... Hook>(std::type_identity<std::tuple<Hook...>>) {
    (names.push_back(Hook::name), ...);
  }(std::type_identity<hooks::List>{});
  ASSERT_EQ(names.size(), hooks::count);
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (std::size_t j = i + 1; j < names.size(); ++j) EXPECT_NE(names[i], names[j]);
  }
}

TEST(Plan, SaysWhoAnswersWhat) {
  constexpr auto plan = fulmen::detail::make_plan<Plain, Nothing>();
  static_assert(plan.runs("on_train_start"));
  static_assert(!plan.runs("on_train_end"));
  EXPECT_NE(plan.participants[0].find("Plain"), std::string_view::npos);
  const std::string table = to_string(plan);
  EXPECT_NE(table.find("on_train_start"), std::string::npos);
  EXPECT_EQ(table.find("on_train_end"), std::string::npos);
  EXPECT_NE(table.find("training_step               default"), std::string::npos);
}

}  // namespace
