# A login shell gets the system's PATH from /etc/profile; the lab's Python comes first, as in a notebook.
case ":$PATH:" in
    *:/opt/lab/bin:*) ;;
    *) PATH=/opt/lab/bin:$PATH ;;
esac
