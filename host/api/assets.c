/*
 * The files that are built in: the web page and the interface's description.
 *
 * .incbin puts them into the object as they are, so that no generated file lies about;
 * the makefile knows that this object depends on them.
 */
#include "host/api/internal.h"

#define BUILT_IN(name, path)                                                          \
	extern const char name##_begin[], name##_end[];                               \
	__asm__(".pushsection .rodata\n"                                              \
		".balign 16\n" #name "_begin:\n"                                      \
		".incbin \"" path "\"\n" #name "_end:\n"                              \
		".byte 0\n"                                                           \
		".popsection\n")

BUILT_IN(api_asset_page, "host/api/page.html");
BUILT_IN(api_asset_openapi, "docs/openapi.json");

struct asset asset_page(void)
{
	return (struct asset){ api_asset_page_begin,
			       (size_t)(api_asset_page_end - api_asset_page_begin) };
}

struct asset asset_openapi(void)
{
	return (struct asset){ api_asset_openapi_begin,
			       (size_t)(api_asset_openapi_end - api_asset_openapi_begin) };
}
