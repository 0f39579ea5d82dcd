// The part of fmt that is not a template of the caller's, compiled once for all of nybble (cmake/fmt.cmake).
#include <fmt/format-inl.h>

FMT_BEGIN_NAMESPACE
using namespace detail;  // where locale_ref is to be found differs between versions

// What <fmt/format.h> declares as instantiated elsewhere.
template auto detail::thousands_sep_impl<char>(locale_ref) -> thousands_sep_result<char>;
template auto detail::thousands_sep_impl<wchar_t>(locale_ref) -> thousands_sep_result<wchar_t>;
template auto detail::decimal_point_impl(locale_ref) -> char;
template auto detail::decimal_point_impl(locale_ref) -> wchar_t;
template void detail::vformat_to(buffer<char>&, string_view, basic_format_args<format_context>, locale_ref);

// What it declares as a template and defines in <fmt/format-inl.h> only.
template auto detail::dragonbox::to_decimal(float) -> dragonbox::decimal_fp<float>;
template auto detail::dragonbox::to_decimal(double) -> dragonbox::decimal_fp<double>;
template locale_ref::locale_ref(const std::locale&);
template auto locale_ref::get<std::locale>() const -> std::locale;

FMT_END_NAMESPACE
