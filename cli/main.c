/*
 * `brim`.  All of it is in cli.c and below, so that tests can link it.
 */
#include "cli/cli.h"

int main(int argc, char **argv)
{
	return cli_main(argc, argv);
}
