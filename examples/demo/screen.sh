# shellcheck shell=bash
# screen.sh: how ./demo looks: a screen that is drawn anew every second, or plain lines.
#
# Sourced by ./demo, whose variables it reads: phase, at, total, avail, peak, pressure, progress, rows,
# messages (the frame last heard), host_mib, vms, vm_mib, mode (what is shown), plain. Sizes are in MiB.
#
# What must be true
#   I1  screen_close undoes all of screen_open, as often as it is called;
#   I2  every line is cut to the terminal's width before colours are added to it;
#   I3  the screen says the same as the lines.
# shellcheck disable=SC2154 # ./demo sets them

fancy=0 terminal='' tty='' columns=80 began=$EPOCHSECONDS plain_at=-100
headline='' sum_line=''
wide_char='·'
if [ ${#wide_char} -eq 1 ]; then
	dot='·' full='█' half='▒' empty='░'
else
	dot='|' full='#' half='=' empty='.'
fi
bold='' dim='' red='' green='' yellow='' cyan='' normal=''

screen_open()
{
	if [ $plain -eq 1 ] || [ ! -t 1 ] || [ "${TERM:-dumb}" = dumb ]; then
		return 0
	fi
	fancy=1
	if [ -z "${NO_COLOR-}" ]; then
		bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' cyan=$'\e[36m' normal=$'\e[m'
	fi
	exec {tty}>&1
	terminal=$(stty -g <&"$tty" 2>/dev/null)
	# What is typed would end up in the picture; and stopped, we could not restore it.
	[ -z "$terminal" ] || stty -echo susp undef <&"$tty"
	# The other screen, no cursor, no wrapping at the right edge.
	printf '\e[?1049h\e[?25l\e[?7l\e[2J'
}

screen_close()
{
	[ $fancy -eq 1 ] || return 0
	fancy=0
	printf '\e[?7h\e[?25h\e[?1049l'
	[ -z "$terminal" ] || stty "$terminal" <&"$tty"
	bold='' dim='' red='' green='' yellow='' cyan='' normal=''
}

# size MIB: short, sets `short`.
size()
{
	local m=$1
	if [ "$m" = - ] || [ "$m" = 0 ]; then
		short=$m
	elif [ "$m" -lt 1000 ]; then
		short=${m}M
	elif [ $((m % 1024)) -eq 0 ]; then
		short=$((m / 1024))G
	else
		short=$(((m * 10 + 512) / 1024))
		short=${short%?}.${short: -1}G
		[[ $short != .* ]] || short=0$short
	fi
}

# gib MIB: long, printed.
gib()
{
	local short
	size "$1"
	case $short in
	0) echo 0 ;;
	*M) echo "${short%M} MiB" ;;
	*) echo "${short%G} GiB" ;;
	esac
}

# bar PARTS-OF-100 WIDTH FULL EMPTY
bar()
{
	local n=$(($1 * $2 / 100)) i
	bar=''
	for ((i = 0; i < $2; i++)); do
		if [ $i -lt $n ]; then bar+=$3; else bar+=$4; fi
	done
}

# ---------------------------------------------------------------- what a frame says

# Adds up the VMs: sets the headline and what the last line of the table shows.
summarise()
{
	local row name state pct assigned res over ball rep free high pieces checked wrong piece short
	local ratio parts=() v
	t_assigned=0 t_resident=0 t_overhead=0 t_ballooned=0 t_reported=0 t_free=0 t_given=0 t_checked=0 t_wrong=0 t_pieces=0 up=0 off=0
	for row in "${rows[@]}"; do
		read -r name state pct assigned res over ball rep free high pieces checked wrong piece <<<"$row"
		t_assigned=$((t_assigned + assigned)) t_checked=$((t_checked + checked))
		t_wrong=$((t_wrong + wrong)) t_pieces=$((t_pieces + pieces))
		if [ "$res" != - ]; then
			t_resident=$((t_resident + res)) t_given=$((t_given + high - res))
		fi
		[ "$over" = - ] || t_overhead=$((t_overhead + over))
		[ "$ball" = - ] || t_ballooned=$((t_ballooned + ball))
		[ "$rep" = - ] || t_reported=$((t_reported + rep))
		[ "$free" = - ] || t_free=$((t_free + free))
		case $state in queued | booting | died) ;; off) off=$((off + 1)) ;; *) up=$((up + 1)) ;; esac
	done
	ratio=$((t_assigned * 100 / host_mib))
	ratio=$((ratio / 100)).$(printf %02d $((ratio % 100)))
	for v in $t_assigned "$host_mib" $((t_resident + t_overhead)) $t_given "$avail"; do
		size "$v"
		parts+=("$short")
	done
	sum_line="in use ${parts[2]} $dot given back ${parts[3]} $dot host free ${parts[4]}"
	headline="assigned ${parts[0]} on ${parts[1]} (${ratio}x) $dot $sum_line"
	if [ "$columns" -ge 104 ]; then
		headline="assigned $(gib $t_assigned) on a $(gib "$host_mib") host (${ratio}x) $dot in use $(gib $((t_resident + t_overhead)))"
		headline+=" $dot given back $(gib $t_given) $dot host free $(gib "$avail")"
	fi
}

COLUMNS_FORMAT='%-6s%-13s%8s%9s%9s%9s%9s%9s%8s'
table_head()
{
	# shellcheck disable=SC2059
	printf "$COLUMNS_FORMAT\n" '' '' '' 'in use' given 'in its' reported 'free in' ''
	# shellcheck disable=SC2059
	printf "$COLUMNS_FORMAT\n" VM state assigned 'on host' back balloon free guest checked
}

table_rows()
{
	local row name state pct assigned res over ball rep free high pieces checked wrong piece short cells v given
	for row in "${rows[@]}"; do
		read -r name state pct assigned res over ball rep free high pieces checked wrong piece <<<"$row"
		given=-
		[ "$res" = - ] || given=$((high - res))
		cells=()
		for v in "$assigned" "$res" "$given" "$ball" "$rep" "$free" "$checked"; do
			size "$v"
			cells+=("$short")
		done
		[ "$wrong" -eq 0 ] || cells[6]=WRONG
		[ "$pct" = - ] || state+=" $pct%"
		# shellcheck disable=SC2059
		printf "$COLUMNS_FORMAT\n" "$name" "$state" "${cells[@]}"
	done
}

table_total()
{
	local cells=() short v
	for v in $t_assigned $t_resident $t_given $t_ballooned $t_reported $t_free $t_checked; do
		size "$v"
		cells+=("$short")
	done
	# shellcheck disable=SC2059
	printf "$COLUMNS_FORMAT\n" total '' "${cells[@]}"
}

table_lines() { table_head; table_rows; table_total; }

phase_text()
{
	case $phase in
	prepare) phase_text="getting ready" ;;
	boot) phase_text="booting: $up of ${#rows[@]} guests are up" ;;
	work) phase_text="working: $t_pieces pieces done, $t_wrong wrong bytes" ;;
	finish) phase_text="finishing: $t_pieces pieces done, $t_wrong wrong bytes" ;;
	stop) phase_text="power buttons pressed: $off of ${#rows[@]} VMs are off" ;;
	esac
}

# ---------------------------------------------------------------- plain lines

plain_line() { printf '%s\n' "$1"; }

plain_show()
{
	local phase_text
	if [ "$phase" = prepare ]; then
		[ $plain_at -eq -100 ] || return 0
		plain_at=-99
		plain_line "brim demo: $vms VMs of $(gib $vm_mib) on a host of $(gib "$host_mib") ($mode); getting ready"
		return 0
	fi
	[ $((at - plain_at)) -ge 5 ] || [ "$phase" != "${plain_phase-}" ] || return 0
	plain_at=$at plain_phase=$phase
	phase_text
	plain_line "$(printf '%4s s  %s' "$at" "$phase_text $dot $sum_line")"
}

# ---------------------------------------------------------------- the screen

# put TEXT [COLOUR]: one line of it, if there is room.
put()
{
	[ $line_count -lt "$lines_max" ] || return 0
	line_count=$((line_count + 1))
	picture+="${2-}${1:0:columns}${normal}"
	# At the right edge the cursor stands on the last character: erasing from there would take it.
	[ ${#1} -ge "$columns" ] || picture+=$'\e[K'
	picture+=$'\r\n'
}

row_colour()
{
	case $1 in
	*' fills '* | *' checks '*) colour=$green ;;
	*' booting '* | *' queued '* | *' grows '*) colour=$yellow ;;
	*' waits '*) colour=$cyan ;;
	*' died '* | *' failed '* | *WRONG*) colour=$red$bold ;;
	*' off '* | *' idle '*) colour=$dim ;;
	*) colour='' ;;
	esac
}

# The host's memory: what VMs hold, what else is used, what is free.
put_host()
{
	local width=$((columns - 62)) by_vms other bar text short
	[ $width -ge 10 ] || width=10
	[ $width -le 60 ] || width=60
	[ "$total" -gt 0 ] || return 0
	by_vms=$(((t_resident + t_overhead) * width / total))
	other=$(((total - avail) * width / total - by_vms))
	[ $other -ge 0 ] || other=0
	bar 100 $by_vms "$full" "$full"; text=$bar
	bar 100 $other "$half" "$half"; text+=$bar
	bar 100 $((width - by_vms - other)) "$empty" "$empty"; text+=$bar
	size $((total - avail)); text="host  $text  used $short"
	size "$peak"; text+=" $dot peak $short"
	size "$avail"; text+=" $dot free $short"
	size "$total"; text+=" of $short"
	[ "$pressure" -eq 0 ] || text+="  SHORT"
	put "$text" "$([ "$pressure" -eq 0 ] || echo "$yellow")"
}

put_legend()
{
	put ""
	put "given back: was in use and is the host's again $dot checked: compared and right" "$dim"
	put "reported free: all that the guest reported so far, by free page reporting" "$dim"
}

put_messages()
{
	local room=$((lines_max - line_count - 1)) m
	[ $room -gt 0 ] && [ ${#messages[@]} -gt 0 ] || return 0
	put ""
	[ ${#messages[@]} -ge $room ] || room=${#messages[@]}
	for m in "${messages[@]: -$room}"; do
		put "${m//[[:cntrl:]]/ }"
	done
}

put_work()
{
	local row colour phase_text bar short
	put "$headline" "$bold"
	put_host
	put ""
	while IFS= read -r row; do put "$row" "$dim"; done < <(table_head)
	while IFS= read -r row; do row_colour "$row"; put "$row" "$colour"; done < <(table_rows)
	put "$(table_total)" "$bold"
	put ""
	phase_text
	bar "$progress" 20 "$full" "$empty"
	size $t_overhead
	put "$bar  $at s $dot $phase_text $dot brim $short" "$bold"
	put_legend
	put_messages
}

put_prepare()
{
	local spin=('|' '/' '-' "\\") now=$((EPOCHSECONDS - began))
	put "brim: $vms VMs of $(gib $vm_mib) on a host of $(gib "$host_mib")" "$bold"
	put ""
	if [ "$mode" = emulated ]; then
		put "${spin[now % 4]} getting ready: images, then an emulated host of $(gib "$host_mib") ($now s)"
		put "  The first time packages are fetched and images made: some minutes." "$dim"
	else
		put "${spin[now % 4]} getting ready: kernels and images for the guests ($now s)"
	fi
	put "  Ctrl-C ends it and leaves nothing behind." "$dim"
	put_messages
}

show()
{
	local picture='' line_count=0 lines_max
	if [ $fancy -eq 0 ]; then
		plain_show
		return
	fi
	read -r lines_max columns < <(stty size <&"$tty" 2>/dev/null || echo 24 80)
	[ "${lines_max:-0}" -gt 0 ] || lines_max=24 columns=80
	# The last line stays free: ending it would scroll.
	lines_max=$((lines_max - 1))
	if [ "$phase" = prepare ] || [ ${#rows[@]} -eq 0 ]; then put_prepare; else put_work; fi
	printf '\e[H%s\e[J' "$picture"
}
